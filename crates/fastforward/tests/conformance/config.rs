//! Family `config`: rule sets, policies and stale collections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use fastforward::module::{Module, named_slots};
use fastforward::mpath::{Context, SearchOptions};
use fastforward::quantization::quant_init::{
    Factory, InitializeOptions, OverwritePolicy, QuantizationConfig, QuantizerCollection, Rule,
    find_quantizers_with,
};
use fastforward::quantization::{LinearQuantizer, LinearQuantizerConfig, Quantizer};
use fastforward::{Error, ErrorKind};
use serde_json::{Map, Value, json};

use crate::differences::{Difference, judge, run};
use crate::golden::Family;
use crate::tree::{Classes, Tree};

/// What a factory was called with, in order, and who made which quantizer.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogEntries>>);

#[derive(Default)]
struct LogEntries {
    calls: Vec<Value>,
    origins: Vec<(Arc<dyn Quantizer>, String)>,
}

impl Log {
    fn factory(&self, spec: &Value, label: String) -> Factory {
        let (log, spec) = (self.clone(), spec.clone());
        Factory::new(move |name, current: &Arc<dyn Quantizer>| {
            let mut entries = log.0.lock().expect("no factory panics");
            entries.calls.push(json!([label, name, current.class().name()]));
            match spec["kind"].as_str() {
                Some("keep") => Ok(Arc::clone(current)),
                Some("raise") => Err("raised on purpose".into()),
                _ => {
                    let bits = spec["num_bits"].as_u64().expect("bits") as u32;
                    let mut config = LinearQuantizerConfig::new(bits);
                    config.range.symmetric = spec["symmetric"].as_bool().expect("symmetric");
                    let made: Arc<dyn Quantizer> = Arc::new(LinearQuantizer::new(config)?);
                    entries.origins.push((Arc::clone(&made), label.clone()));
                    Ok(made)
                }
            }
        })
    }

    fn origin(&self, quantizer: &Arc<dyn Quantizer>) -> String {
        if quantizer.is_stub() {
            return "stub".into();
        }
        let entries = self.0.lock().expect("no factory panics");
        let made = entries.origins.iter().find(|(made, _)| Arc::ptr_eq(made, quantizer));
        made.map_or_else(|| "existing".into(), |(_, label)| label.clone())
    }
}

fn policy(step: &Value) -> Result<OverwritePolicy, Error> {
    step["policy"].as_str().expect("a policy").parse()
}

/// Our answer to the first `num_steps` steps of a case.
fn answer(
    case: &Value,
    num_steps: usize,
    classes: &Classes,
    context: &Context,
    trees: &Value,
) -> Value {
    let model = Tree::build(&trees[case["tree"].as_str().expect("a tree")], classes);
    let log = Log::default();
    let collections: RefCell<HashMap<&str, QuantizerCollection<'_>>> = RefCell::default();
    let mut results = Vec::new();
    for (at, step) in case["steps"].as_array().expect("steps").iter().enumerate().take(num_steps) {
        let id = step["id"].as_str().unwrap_or_default();
        let result = match step["op"].as_str() {
            Some("collect") => {
                let query = step["query"].as_str().expect("a query");
                find_quantizers_with(&model, query, &SearchOptions::new(context)).map(|found| {
                    let names = json!(found.names());
                    collections.borrow_mut().insert(id, found);
                    names
                })
            }
            Some("init_collection") => policy(step).and_then(|overwrite_policy| {
                let options = InitializeOptions {
                    safe: step["safe"].as_bool().expect("safe"),
                    overwrite_policy,
                };
                let mut collections = collections.borrow_mut();
                let collection = collections.get_mut(id).expect("was collected");
                collection.initialize(log.factory(&step["factory"], format!("s{at}")), options)?;
                Ok(Value::Null)
            }),
            _ => policy(step).and_then(|overwrite_policy| {
                let mut config = QuantizationConfig::new(context.clone());
                for (rule, spec) in step["rules"].as_array().expect("rules").iter().enumerate() {
                    let query = context
                        .query(spec["query"].as_str().expect("a query"))
                        .expect("the queries of this family parse");
                    let factory = log.factory(&spec["factory"], format!("s{at}r{rule}"));
                    let score = step["scores"].get(rule).and_then(Value::as_i64).unwrap_or(1);
                    config.add(Rule { priority: score, ..Rule::new(query, factory) });
                }
                let options = InitializeOptions {
                    safe: step["safe"].as_bool().expect("safe"),
                    overwrite_policy,
                };
                config.initialize(&model, options)?;
                Ok(Value::Null)
            }),
        };
        results.push(match result {
            Ok(value) => json!({ "ok": value }),
            Err(error) => {
                let kind = match error.kind() {
                    ErrorKind::AlreadySet => "QuantizationError",
                    ErrorKind::UnsafeUpdate | ErrorKind::Factory | ErrorKind::InvalidSettings => {
                        "ValueError"
                    }
                    other => panic!("{other:?}: {error}"),
                };
                json!({ "error": { "type": kind, "stage": "initialize" } })
            }
        });
    }
    let calls = log.0.lock().expect("no factory panics").calls.clone();
    json!({ "results": results, "factory_calls": calls, "final": state(&model, &log) })
}

fn state(model: &dyn Module, log: &Log) -> Value {
    let mut names = Map::new();
    for entry in named_slots(model) {
        let quantizer = entry.slot.quantizer();
        let mut state = json!({
            "class": quantizer.class().name(),
            "origin": log.origin(&quantizer),
            "tags": entry.slot.tags().as_slice().iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
        });
        if let Some(settable) = quantizer.as_range_settable() {
            state["num_bits"] = json!(quantizer.num_bits());
            state["symmetric"] = json!(settable.is_symmetric());
        }
        names.insert(entry.name().to_owned(), state);
    }
    Value::Object(names)
}

#[test]
fn conformance_config() {
    let family = Family::read("config");
    let (classes, context) = Classes::read(&family.file["class_table"]);
    let trees = &crate::order::ordered_trees(&family.file);
    run("config", family.cases(), |case| {
        let num_steps = case["steps"].as_array().expect("steps").len();
        let mut ours = answer(case, num_steps, &classes, &context, trees);
        // What the checks of the differences need besides: our state after each step, and the order of declaration.
        let after: Vec<Value> = (0..=num_steps)
            .map(|steps| answer(case, steps, &classes, &context, trees)["final"].take())
            .collect();
        ours["after"] = Value::Array(after);
        judge("config", case, &ours, || {
            for field in ["results", "final", "factory_calls"] {
                if ours[field] != case[field] {
                    return Err(format!("{field}: {}, expected {}", ours[field], case[field]));
                }
            }
            Ok(())
        })
    });
}

/// The first step that fails for one of the two.
fn first_failure(case: &Value, ours: &Value) -> Option<usize> {
    let failed = |results: &Value, at: usize| results[at].get("error").is_some();
    let count = case["steps"].as_array().map_or(0, Vec::len);
    (0..count).find(|&at| failed(&case["results"], at) || failed(&ours["results"], at))
}

/// The calls of one step, sorted by the declaration order of their slots.
fn in_declaration_order(calls: &Value, step: usize, ours: &Value) -> Vec<Value> {
    let declared = ours["final"].as_object().expect("slots");
    let position = |call: &Value| {
        let name = call[1].as_str().expect("a name");
        declared.keys().position(|known| known == name)
    };
    let mut calls: Vec<Value> = calls
        .as_array()
        .expect("calls")
        .iter()
        .filter(|call| {
            let label = call[0].as_str().expect("a label");
            label == format!("s{step}") || label.starts_with(&format!("s{step}r"))
        })
        .cloned()
        .collect();
    calls.sort_by_key(position);
    calls
}

fn equal_up_to_order_of_calls(case: &Value, ours: &Value, num_steps: usize) -> Result<(), String> {
    for step in 0..num_steps {
        let expected = in_declaration_order(&case["factory_calls"], step, ours);
        if in_declaration_order(&ours["factory_calls"], step, ours) != expected {
            return Err(format!("step {step} calls other factories"));
        }
        if ours["results"][step] != case["results"][step] {
            return Err(format!("step {step} has another result"));
        }
    }
    Ok(())
}

pub const DIFFERENCES: &[Difference] = &[
    Difference {
        family: "config",
        when: "the factories of a rule set are not called in declaration order",
        reason: "all rules are matched in one walk, so slots are filled in the order in which the model declares them, not \
                 rule by rule in the order of the reference's search",
        applies: |case| {
            let num_steps = case["steps"].as_array().map_or(0, Vec::len);
            let sorted: Vec<Value> = (0..num_steps)
                .flat_map(|step| in_declaration_order(&case["factory_calls"], step, case))
                .collect();
            case["factory_calls"] != Value::Array(sorted)
        },
        check: |case, ours| {
            if first_failure(case, ours).is_some() {
                return Err("a step fails".into());
            }
            if ours["final"] != case["final"] {
                return Err("the slots hold other quantizers".into());
            }
            equal_up_to_order_of_calls(case, ours, case["steps"].as_array().map_or(0, Vec::len))
        },
    },
    Difference {
        family: "config",
        when: "a step fails",
        reason: "initialization is all or nothing: the reference leaves what it had done before the failure, and goes on \
                 with that in later steps",
        applies: |case| {
            case["results"].as_array().is_some_and(|r| r.iter().any(|r| r.get("error").is_some()))
        },
        check: |case, ours| {
            let failing = first_failure(case, ours).ok_or("no step fails")?;
            equal_up_to_order_of_calls(case, ours, failing)?;
            if case["results"][failing].get("error").is_none() {
                return Err(format!("step {failing} fails for us only"));
            }
            if ours["results"][failing].get("error").is_none() {
                return Err(format!("step {failing} succeeds for us"));
            }
            // Nothing that the failing step would have done is there.
            if ours["after"][failing] != ours["after"][failing + 1] {
                return Err(format!("step {failing} changed slots although it failed"));
            }
            Ok(())
        },
    },
    Difference {
        family: "config",
        when: "the overwrite policy is none of skip, overwrite and error",
        reason: "an illegal policy is refused always; the reference notices it only when it meets an initialized slot",
        applies: |case| {
            case["steps"]
                .as_array()
                .is_some_and(|steps| steps.iter().any(|s| s["policy"] == "bogus"))
        },
        check: |case, ours| {
            let failing = first_failure(case, ours).ok_or("no step fails")?;
            equal_up_to_order_of_calls(case, ours, failing)?;
            if case["steps"][failing]["policy"] != "bogus" {
                return Err(format!("step {failing} fails with a legal policy"));
            }
            if ours["results"][failing]["error"]["type"] != "ValueError" {
                return Err(format!("step {failing} is not refused"));
            }
            if ours["after"][failing] != ours["after"][failing + 1] {
                return Err(format!("step {failing} changed slots although it failed"));
            }
            Ok(())
        },
    },
    Difference {
        family: "config",
        when: "a collection is initialized, not safe, after some of its slots were filled by others",
        reason: "the policy looks at what stands in the slot now; the reference looks at what stood there when the \
                 collection was made, and so overwrites quantizers under `error` and `skip`",
        applies: |case| {
            case["steps"].as_array().is_some_and(|steps| {
                steps.iter().any(|step| step["op"] == "init_collection" && step["safe"] == false)
            })
        },
        check: |case, ours| {
            let steps = case["steps"].as_array().ok_or("no steps")?;
            let at = steps
                .iter()
                .position(|step| step["op"] == "init_collection" && step["safe"] == false)
                .ok_or("no such step")?;
            equal_up_to_order_of_calls(case, ours, at)?;
            let (before, after) = (&ours["after"][at], &ours["after"][at + 1]);
            let occupied = before
                .as_object()
                .ok_or("no slots")?
                .iter()
                .filter(|(_, slot)| slot["class"] != "QuantizerStub");
            match steps[at]["policy"].as_str() {
                Some("error") if ours["results"][at]["error"]["type"] != "QuantizationError" => {
                    Err("filled slots are not refused".into())
                }
                Some("overwrite") => Err("overwriting is what both do".into()),
                _ => match occupied.into_iter().find(|(name, slot)| &&after[name.as_str()] != slot)
                {
                    Some((name, _)) => Err(format!("{name} was overwritten")),
                    None => Ok(()),
                },
            }
        },
    },
];
