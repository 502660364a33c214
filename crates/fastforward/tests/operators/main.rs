//! Every operator against what PyTorch computed: results and gradients of conformance/operators, on operands that are
//! dense and on operands that are strided views.

#![cfg(feature = "eager")]
#![allow(unreachable_pub, reason = "items are shared between the modules of one test")]

mod arguments;
mod call;
mod cases;
mod compare;
mod quantized;
mod refused;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arguments::{Arguments, Operand};
use candle_core::{Tensor, Var};
use cases::{Case, Tensors};
use compare::Tolerance;

/// The groups of cases, each with a test of its own.
macro_rules! groups {
    ($($test:ident: $group:literal;)*) => {
        const GROUPS: &[&str] = &[$($group),*];
        $(#[test] fn $test() { check_group($group); })*
    };
}

groups! {
    conformance_product: "product";
    conformance_convolution: "convolution";
    conformance_pooling: "pooling";
    conformance_resampling: "resampling";
    conformance_normalization: "normalization";
    conformance_activation: "activation";
    conformance_arithmetic: "arithmetic";
    conformance_bitwise: "bitwise";
    conformance_arrangement: "arrangement";
    conformance_attention: "attention";
}

#[test]
fn conformance_every_case_is_in_a_tested_group_and_every_refusal_meets_a_case() {
    let cases = cases::all();
    assert!(cases.len() > 600, "only {} cases", cases.len());
    let strange: Vec<_> = cases.iter().filter(|c| !GROUPS.contains(&c.group.as_str())).collect();
    assert!(strange.is_empty(), "cases in groups that no test runs: {strange:?}");
    let mut tensors = BTreeMap::new();
    for refusal in refused::TABLE {
        let met = cases.iter().any(|case| {
            let tensors =
                tensors.entry(case.group.clone()).or_insert_with(|| Tensors::read(&case.group));
            refusal.covers(case, tensors)
        });
        assert!(met, "{} refuses nothing that is in the cases: {}", refusal.op, refusal.reason);
    }
}

/// Runs the cases of a group and reports all that fail.
#[track_caller]
fn check_group(group: &str) {
    let tensors = Tensors::read(group);
    let cases: Vec<_> = cases::all().into_iter().filter(|case| case.group == group).collect();
    assert!(!cases.is_empty(), "no case in the group {group}");
    let mut failures = Vec::new();
    for case in &cases {
        for layout in [Layout::Dense, Layout::Strided] {
            let outcome = catch_unwind(AssertUnwindSafe(|| check(case, &tensors, layout)));
            let problems = outcome.unwrap_or_else(|_| vec!["panicked".into()]);
            failures.extend(problems.iter().map(|p| format!("{} ({layout:?}): {p}", case.id)));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// What is wrong with one case.
fn check(case: &Case, tensors: &Tensors, layout: Layout) -> Vec<String> {
    let leaves: BTreeMap<_, Vec<_>> = case
        .operands
        .iter()
        .map(|(name, keys)| {
            let differentiated = case.gradients.contains_key(name);
            let leaf = |key: &String| Leaf::new(tensors.get(key), layout, differentiated);
            (name.as_str(), keys.list().iter().map(leaf).collect())
        })
        .collect();
    let operands = leaves
        .iter()
        .map(|(&name, leaves)| {
            let operands: Vec<_> = leaves.iter().map(|leaf| leaf.operand.clone()).collect();
            let operand = match case.operands[name] {
                cases::Keys::One(_) => Operand::One(operands[0].clone()),
                cases::Keys::Several(_) => Operand::Several(operands),
            };
            (name, operand)
        })
        .collect();
    let arguments = Arguments::new(operands, &case.attributes);
    let called = call::call(&case.op, &arguments);

    if let Some(refusal) = refused::TABLE.iter().find(|r| r.covers(case, tensors)) {
        return match called {
            Ok(_) => vec![format!("is listed as refused ({}), but runs", refusal.reason)],
            Err(e) if e.to_string().contains(refusal.message) => Vec::new(),
            Err(e) => vec![format!("the error says `{e}`, which lacks `{}`", refusal.message)],
        };
    }
    let outcome = match called {
        Ok(outcome) => outcome,
        Err(e) => return vec![format!("error: {e}")],
    };
    let mut problems: Vec<_> =
        arguments.unused().iter().map(|name| format!("`{name}` of the case is not used")).collect();
    let p = case.attributes.get("p").and_then(serde_json::Value::as_f64);
    let tolerance = Tolerance::parse(&case.tolerance, p).expect("the README lists the tolerances");
    let mut compare = |part: &str, tolerance: Tolerance, got: &Tensor, want: &Tensor| {
        if let Err(problem) = tolerance.check(got, want) {
            problems.push(format!("{part}: {problem}"));
        }
    };
    compare("result", tolerance, &outcome.result, tensors.get(&case.result));
    let wanted: BTreeSet<_> = case.updated.keys().map(String::as_str).collect();
    assert_eq!(wanted, outcome.updated.keys().copied().collect(), "operands that change in place");
    for (name, key) in &case.updated {
        compare(name, tolerance, &outcome.updated[name.as_str()], tensors.get(key));
    }
    let (Some(upstream), Some(tolerance)) = (&case.upstream, &case.gradient_tolerance) else {
        return problems;
    };
    let tolerance = Tolerance::parse(tolerance, None).expect("the README lists the tolerances");
    if outcome.result.dims() != tensors.get(upstream).dims() {
        return problems; // said above
    }
    // The gradient of the product with the upstream gradient, started from ones.
    let gradients = (outcome.result * tensors.get(upstream)).and_then(|product| product.backward());
    let gradients = match gradients {
        Ok(gradients) => gradients,
        Err(e) => {
            problems.push(format!("backward: {e}"));
            return problems;
        }
    };
    for (name, keys) in &case.gradients {
        for (i, (leaf, key)) in leaves[name.as_str()].iter().zip(keys.list()).enumerate() {
            let want = tensors.get(key);
            let got = leaf.gradient(&gradients).unwrap_or_else(|| want.zeros_like().unwrap());
            if let Err(problem) = tolerance.check(&got, want) {
                problems.push(format!("gradient of {name}[{i}]: {problem}"));
            }
        }
    }
    problems
}

/// How operands lie in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Row-major, from the start of the storage.
    Dense,
    /// Column-major, every second element, from the second: what no slice of the storage holds.
    Strided,
}

/// An operand and, if it is differentiated, the variable it is a view of.
struct Leaf {
    operand: Tensor,
    variable: Option<Var>,
    layout: Layout,
}

impl Leaf {
    fn new(tensor: &Tensor, layout: Layout, differentiated: bool) -> Self {
        let storage = layout.store(tensor).expect("any tensor can be stored");
        let variable = differentiated.then(|| Var::from_tensor(&storage).expect("a plain tensor"));
        let storage = variable.as_ref().map_or(&storage, |variable| variable.as_tensor());
        let operand = layout.view(storage).expect("what was stored can be viewed");
        Self { operand, variable, layout }
    }

    fn gradient(&self, gradients: &candle_core::backprop::GradStore) -> Option<Tensor> {
        let gradient = gradients.get(self.variable.as_ref()?)?;
        Some(self.layout.view(gradient).expect("a gradient has the shape of its variable"))
    }
}

impl Layout {
    /// The storage of which [`view`](Self::view) is the tensor.
    fn store(self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense => tensor.copy(), // some operators change their operand
            Self::Strided => {
                let reversed = tensor.permute(reversed(tensor.rank()))?;
                // What lies between may not be read: NaN would show.
                let between = if tensor.dtype().is_float() { f64::NAN } else { 77.0 };
                let between = Tensor::full(between, reversed.shape(), tensor.device())?
                    .to_dtype(tensor.dtype())?;
                Tensor::stack(&[&between, &reversed], tensor.rank())
            }
        }
    }

    fn view(self, storage: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense => Ok(storage.clone()),
            Self::Strided => {
                let rank = storage.rank() - 1;
                storage.narrow(rank, 1, 1)?.squeeze(rank)?.permute(reversed(rank))
            }
        }
    }
}

fn reversed(rank: usize) -> Vec<usize> {
    (0..rank).rev().collect()
}
