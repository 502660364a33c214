//! Computing the values of a graph, by name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use prost::Message;
use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Model, ValueInfo, check_describe as describe};
use crate::lower::{Lowered, lower};
use crate::proto::GraphProto;
use crate::tensor::Tensor;

mod feed;
mod operators;
mod pack;

pub use operators::{check_operators, is_supported};

/// How an [`Engine`] computes.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads to compute with; `None` for one per physical core. Results are
    /// the same for any number.
    pub n_threads: Option<usize>,
    /// Whether operators are fused. Faster, but intermediate values that are
    /// fused away can no longer be asked for.
    pub optimize: bool,
}

impl Default for EngineOptions {
    /// All cores, nothing fused.
    fn default() -> Self {
        Self { n_threads: None, optimize: false }
    }
}

/// A graph ready to be computed.
///
/// Values are computed in `float32` and `int32`: `int64`, `bool` and the
/// narrow types are converted on the way in and out. Infinities and NaN are
/// results like any other.
///
/// ```
/// use fastforward_onnx::{engine::{Engine, EngineOptions}, graph::Model, tensor::Tensor};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let engine = Engine::new(&model, &EngineOptions::default())?;
/// let images = Tensor::from_f32(vec![2, 1, 8, 8], vec![0.5; 128])?;
/// let values = engine.run(&[("image", &images)], &["r1", "logits"])?;
/// assert_eq!(values[1].shape(), [2, 10]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub struct Engine {
    model: rten::Model,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// Every value of the main graph that can be asked for, with its type
    /// where the file states it.
    values: HashMap<String, Option<DType>>,
    codes: BTreeMap<String, DType>,
    nodes: NodeTable,
    pool: Option<Arc<ThreadPool>>,
    n_threads: usize,
    /// Bytes that each value took when it was last computed.
    seen_bytes: Mutex<HashMap<String, usize>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish()
    }
}

impl Engine {
    /// Prepares `model`: makes the working copy (see [`crate::lower`]) and
    /// loads it. `model` itself is not kept.
    ///
    /// # Errors
    /// `Unsupported` with every operator that cannot be executed, by operator
    /// and node name; the errors of [`lower`].
    pub fn new(model: &Model, options: &EngineOptions) -> Result<Self> {
        Self::from_lowered(model, lower(model)?, options)
    }

    fn from_lowered(model: &Model, mut lowered: Lowered, options: &EngineOptions) -> Result<Self> {
        let mut problems = Vec::new();
        if let Some(graph) = &lowered.proto.graph {
            operators::check(graph, &|_| false, &mut problems);
        }
        if !problems.is_empty() {
            return Err(Error::many(ErrorKind::Unsupported, problems));
        }
        let mut nodes = NodeTable::default();
        let mut rten_options = ModelOptions::with_all_ops();
        rten_options.enable_optimization(options.optimize);
        if let Some(graph) = &mut lowered.proto.graph {
            nodes.rename(graph);
            pack::move_weights(graph, &mut rten_options);
        }
        let bytes = lowered.proto.encode_to_vec();
        drop(lowered.proto);
        let rten =
            guard(|| rten_options.load(bytes))?.map_err(|error| nodes.explain_load(error))?;

        let infos = model.value_infos();
        let graph = model.graph();
        let computed =
            graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
        let fed = graph.input.iter().map(|input| input.name());
        let weights = graph.initializer.iter().map(|tensor| tensor.name());
        let values = computed
            .map(String::as_str)
            .chain(fed)
            .chain(weights)
            .filter(|name| rten.find_node(name).is_some())
            .map(|name| (name.to_owned(), infos.get(name).and_then(|info| info.dtype)))
            .collect();
        let n_threads = options.n_threads.map(|n| n.max(1));
        let pool = n_threads.map(|n| Arc::new(ThreadPool::with_num_threads(n)));
        let all_cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            model: rten,
            inputs: model.inputs(),
            outputs: model.outputs(),
            values,
            codes: lowered.codes,
            nodes,
            pool,
            n_threads: n_threads.unwrap_or_else(all_cores),
            seen_bytes: Mutex::default(),
        })
    }

    /// What must be fed.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// What the graph returns.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// Whether [`Engine::run`] can return the value `name`: not a constant that
    /// nothing reads, nor a value inside a nested graph.
    pub fn has_value(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Computes the values `outputs`, in their order, whatever values of the
    /// main graph they are.
    ///
    /// Integers stay integers of the type that the file states; types that
    /// [`TensorData`](crate::tensor::TensorData) lacks come in the next wider one.
    ///
    /// # Errors
    /// `Input` when an input is missing, unknown, or has another type or shape
    /// than the graph states, all such inputs at once; `NotFound` for an output
    /// that does not exist; `Execution` naming the operator and node that failed.
    pub fn run(&self, inputs: &[(&str, &Tensor)], outputs: &[&str]) -> Result<Vec<Tensor>> {
        feed::check_inputs(&self.inputs, inputs)?;
        let fed = self.feed(inputs)?;
        self.compute(inputs, &fed, outputs)
    }

    /// Computes values of several graphs from the same inputs, as [`Engine::run`] does for each.
    ///
    /// As many graphs are computed at a time as engines have threads: much of a graph keeps one thread busy only. The
    /// results do not depend on that.
    pub(crate) fn run_side_by_side(
        inputs: &[(&str, &Tensor)],
        runs: &[(&Engine, &[&str])],
    ) -> Vec<Result<Vec<Tensor>>> {
        let n_threads = runs.iter().map(|(engine, _)| engine.n_threads).min().unwrap_or(1);
        let n_workers = n_threads.min(runs.len());
        let run = |&(engine, outputs): &(&Engine, &[&str])| engine.run(inputs, outputs);
        if n_workers < 2 {
            return runs.iter().map(run).collect();
        }
        let next = AtomicUsize::new(0);
        let work = || -> Vec<(usize, Result<Vec<Tensor>>)> {
            let take = || {
                let at = next.fetch_add(1, Ordering::Relaxed);
                Some((at, run(runs.get(at)?)))
            };
            std::iter::from_fn(take).collect()
        };
        let mut found = std::thread::scope(|scope| {
            let others: Vec<_> = (1..n_workers).map(|_| scope.spawn(work)).collect();
            let mut found = work();
            for other in others {
                match other.join() {
                    Ok(results) => found.extend(results),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            found
        });
        found.sort_by_key(|&(at, _)| at);
        found.into_iter().map(|(_, result)| result).collect()
    }

    /// Computes many values without holding more than about `max_bytes` of them
    /// at a time, and hands each to `each`, in the order of `outputs`.
    ///
    /// The graph is computed once for each group of values that fits. How
    /// values are grouped does not change them.
    ///
    /// # Errors
    /// As [`Engine::run`], and whatever `each` returns.
    pub fn run_bounded<E: From<Error>>(
        &self,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        max_bytes: usize,
        mut each: impl FnMut(&str, Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        feed::check_inputs(&self.inputs, inputs)?;
        let fed = self.feed(inputs)?;
        let mut rest = outputs;
        while !rest.is_empty() {
            let (group, after) = rest.split_at(self.group_len(rest, max_bytes));
            for (name, value) in group.iter().zip(self.compute(inputs, &fed, group)?) {
                each(name, value)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Computes `outputs` for all rows of `inputs`, `batch_size` rows at a time,
    /// and hands each batch to `each` with its rows.
    ///
    /// The first axis of every input that is not `shared` counts the samples.
    /// Where the graph fixes that axis, its size takes the place of
    /// `batch_size`.
    ///
    /// # Errors
    /// As [`Engine::run`]; `Input` when inputs count different samples, when
    /// there is none, or when the samples do not fill batches of a fixed size.
    pub fn run_batches<E: From<Error>>(
        &self,
        inputs: &[BatchInput<'_>],
        batch_size: usize,
        outputs: &[&str],
        mut each: impl FnMut(Range<usize>, Vec<Tensor>) -> Result<(), E>,
    ) -> Result<(), E> {
        for rows in self.batches(inputs, batch_size)? {
            let batch = BatchInput::cut(inputs, rows.clone())?;
            let batch: Vec<(&str, &Tensor)> =
                batch.iter().map(|(name, tensor)| (*name, tensor)).collect();
            each(rows, self.run(&batch, outputs)?)?;
        }
        Ok(())
    }

    /// The row ranges that [`Engine::run_batches`] computes one after another.
    ///
    /// # Errors
    /// As [`Engine::run_batches`].
    pub fn batches(
        &self,
        inputs: &[BatchInput<'_>],
        batch_size: usize,
    ) -> Result<Vec<Range<usize>>> {
        feed::plan_batches(&self.inputs, inputs, batch_size)
    }

    /// How many of `outputs` to compute in one run.
    fn group_len(&self, outputs: &[&str], max_bytes: usize) -> usize {
        /// Before any size is known, this many values are computed at a time.
        const UNKNOWN_GROUP: usize = 8;
        let Ok(seen) = self.seen_bytes.lock() else {
            return 1;
        };
        // Later values are seldom larger than the largest one so far.
        let largest = seen.values().copied().max();
        let guess = largest.unwrap_or(max_bytes / UNKNOWN_GROUP).max(1);
        let mut total = 0usize;
        let fits = outputs.iter().take_while(|name| {
            total = total.saturating_add(seen.get(**name).copied().unwrap_or(guess));
            total <= max_bytes
        });
        fits.count().max(1)
    }

    fn feed(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(NodeId, Value)>> {
        let mut fed = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            // An input that nothing reads may be missing from the engine's graph.
            let Some(id) = self.model.find_node(name) else { continue };
            fed.push((id, feed::to_value(name, tensor, self.codes.contains_key(*name))?));
        }
        Ok(fed)
    }

    fn compute(
        &self,
        inputs: &[(&str, &Tensor)],
        fed: &[(NodeId, Value)],
        outputs: &[&str],
    ) -> Result<Vec<Tensor>> {
        let mut ids = Vec::new();
        let mut missing = Vec::new();
        for name in outputs {
            if inputs.iter().any(|(input, _)| input == name) {
                continue; // Returned as it was given.
            }
            match self.model.find_node(name).filter(|_| self.values.contains_key(*name)) {
                Some(id) if !ids.contains(&id) => ids.push(id),
                Some(_) => {}
                None => {
                    missing.push(format!("the graph has no value `{name}` that can be computed"))
                }
            }
        }
        if !missing.is_empty() {
            return Err(Error::many(ErrorKind::NotFound, missing));
        }
        let mut computed: HashMap<NodeId, Value> = if ids.is_empty() {
            HashMap::new()
        } else {
            let fed = fed.iter().map(|(id, value)| (*id, ValueOrView::from(value))).collect();
            let options = RunOptions::default().with_thread_pool(self.pool.clone());
            let results = guard(|| self.model.run(fed, &ids, Some(options)))?
                .map_err(|error| self.nodes.explain_run(error))?;
            ids.into_iter().zip(results).collect()
        };
        let mut values = Vec::with_capacity(outputs.len());
        for (at, name) in outputs.iter().enumerate() {
            if let Some((_, tensor)) = inputs.iter().find(|(input, _)| input == name) {
                values.push((*tensor).clone());
                continue;
            }
            let is_asked_again = outputs[at + 1..].contains(name);
            let stated =
                self.codes.get(*name).copied().or(self.values.get(*name).copied().flatten());
            let value = self.model.find_node(name).and_then(|id| match is_asked_again {
                true => computed.get(&id).cloned(),
                false => computed.remove(&id),
            });
            let value = value.ok_or_else(|| {
                Error::new(
                    ErrorKind::Execution,
                    format!("the engine returned no value for `{name}`"),
                )
            })?;
            values.push(feed::from_value(name, value, stated)?);
        }
        if let Ok(mut seen) = self.seen_bytes.lock() {
            for (name, value) in outputs.iter().zip(&values) {
                seen.insert((*name).to_owned(), value.size_bytes());
            }
        }
        Ok(values)
    }
}

/// One input of [`Engine::run_batches`].
#[derive(Clone, Copy, Debug)]
pub struct BatchInput<'a> {
    /// The input's name.
    pub name: &'a str,
    /// All samples along the first axis, or the shared value.
    pub tensor: &'a Tensor,
    /// Whether every batch gets the whole tensor.
    pub shared: bool,
}

impl<'a> BatchInput<'a> {
    pub(crate) fn cut(inputs: &[Self], rows: Range<usize>) -> Result<Vec<(&'a str, Tensor)>> {
        let cut = |input: &Self| {
            let tensor = if input.shared {
                input.tensor.clone()
            } else {
                input.tensor.rows(rows.clone())?
            };
            Ok((input.name, tensor))
        };
        inputs.iter().map(cut).collect()
    }
}

/// Maps the engine's node names, which are unique, to those of the file.
#[derive(Debug, Default)]
struct NodeTable {
    descriptions: Vec<String>,
}

impl NodeTable {
    /// Names every node by its number: names in files repeat, are empty, or
    /// are those of values.
    fn rename(&mut self, graph: &mut GraphProto) {
        for node in &mut graph.node {
            for attribute in &mut node.attribute {
                attribute
                    .g
                    .iter_mut()
                    .chain(&mut attribute.graphs)
                    .for_each(|nested| self.rename(nested));
            }
            let number = self.descriptions.len();
            self.descriptions.push(describe(node));
            node.name = Some(format!("node#{number}"));
        }
    }

    fn find(&self, name: &str) -> Option<&str> {
        let number: usize = name.strip_prefix("node#")?.parse().ok()?;
        self.descriptions.get(number).map(String::as_str)
    }

    fn explain_load(&self, error: rten::LoadError) -> Error {
        let text = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), ToString::to_string);
        let text = self.restore(&text);
        let problem = match error.node() {
            Some(name) => match self.find(name) {
                Some(node) => format!("{node} cannot be executed: {text}"),
                None => format!("constant `{name}` cannot be read by the execution engine: {text}"),
            },
            None => format!("the graph cannot be executed: {text}"),
        };
        Error::new(ErrorKind::Unsupported, problem).caused_by(error)
    }

    fn explain_run(&self, error: rten::RunError) -> Error {
        let path = error.node_path();
        let node = path.iter().rev().flatten().find_map(|name| self.find(name));
        let text = error.to_string();
        // The engine begins with its own name of the node, once for each nested graph.
        let text = match (node, text.rfind("\" failed: ")) {
            (Some(_), Some(start)) => self.restore(&text[start + "\" failed: ".len()..]),
            _ => self.restore(&text),
        };
        let problem = match node {
            Some(node) => format!("{node} failed: {text}"),
            None => format!("the graph cannot be computed: {text}"),
        };
        // rten's error cannot be sent between threads, so its text is kept.
        Error::new(ErrorKind::Execution, problem)
    }

    /// Puts the file's names back into a message of the engine.
    fn restore(&self, text: &str) -> String {
        let mut restored = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("node#") {
            let digits = rest[start + 5..].bytes().take_while(u8::is_ascii_digit).count();
            let end = start + 5 + digits;
            restored.push_str(&rest[..start]);
            restored.push_str(self.find(&rest[start..end]).unwrap_or(&rest[start..end]));
            rest = &rest[end..];
        }
        restored.push_str(rest);
        restored
    }
}

/// Runs the engine; a panic in it is an error of ours.
fn guard<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Error::new(ErrorKind::Execution, format!("the execution engine gave up: {text}"))
    })
}
