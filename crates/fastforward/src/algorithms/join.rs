//! One range for slots whose values meet.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use fastforward_onnx::joint_ranges::{JoinOptions, join_ranges};
use fastforward_onnx::tree::{Role, Site, Tree};

use super::data::Data;
use super::network::Network;
use super::prepare::{Trace, of_graph};
use super::report::AlgorithmChange;
use crate::module::named_slots;
use crate::quantization::affine::SavedQuantizer;
use crate::quantization::quantizer::{Quantizer, default_tags};
use crate::quantization::{LinearQuantizer, QuantizerSlot};
use crate::tensor::Result;

/// What was joined, and what was not and why.
pub(super) type Joined = (Vec<AlgorithmChange>, Vec<String>);

/// Gives the quantizers around each concatenation, and around each addition if asked for, one common range, as
/// [`join_ranges`] does on the graph that the forward of the first batch is.
///
/// Slots at operands are known by their names: an operator with the output slot of the module `add` has the slots
/// `add.input_quantizer`, `add.input_quantizer_1`, .. at its operands.
pub(super) fn join(
    network: &mut Network<'_>,
    options: &JoinOptions,
    data: &dyn Data,
) -> Result<Joined> {
    let trace = Trace::of(network.model, data, &RefCell::default())?;
    let tree = Tree::new(&trace.graph);
    let slots = named_slots(network.model);
    let mut copies: HashMap<usize, (QuantizerSlot, Arc<LinearQuantizer>)> = HashMap::new();
    let mut kept = Vec::new();
    for entry in &slots {
        let Some(SavedQuantizer::Linear(config, Some(parameters))) =
            entry.slot.quantizer().to_saved()
        else {
            continue;
        };
        let nodes = trace.outputs.get(&entry.slot.id()).map_or(&[][..], Vec::as_slice);
        let is_own = |site: &&Site| match site.role {
            Role::Output => nodes.contains(&site.node.index),
            _ => entry.names.contains(&site.name),
        };
        let mut sites = tree.sites().iter().filter(is_own).peekable();
        if sites.peek().is_none() && entry.slot.tags().contains(default_tags::activation()) {
            kept.push(format!("`{}`: the forward shows no operator that it is at", entry.name()));
        }
        let copy = Arc::new(LinearQuantizer::new(config)?);
        copy.set_parameters(parameters)?;
        for site in sites.filter(|site| matches!(site.role, Role::Input | Role::Output)) {
            site.slot.replace(Arc::clone(&copy) as _);
        }
        copies.insert(entry.slot.id(), (entry.slot.clone(), copy));
    }
    let mut found = join_ranges(&trace.graph, &tree, options).map_err(of_graph)?;
    // A slot that modules share may stand in two groups, whose ranges then grow together.
    let narrowest: Vec<f64> = found.joined.iter().map(|one| one.narrowest).collect();
    loop {
        let again = join_ranges(&trace.graph, &tree, options).map_err(of_graph)?;
        let ranges = |joined: &[fastforward_onnx::joint_ranges::JoinedRange]| {
            joined.iter().map(|one| (one.min, one.max)).collect::<Vec<_>>()
        };
        if ranges(&again.joined) == ranges(&found.joined) {
            break;
        }
        found = again;
    }
    for (slot, copy) in copies.into_values() {
        if let Some(SavedQuantizer::Linear(config, Some(parameters))) = copy.to_saved()
            && slot.quantizer().to_saved() != copy.to_saved()
        {
            network.set_quantizer(&slot, config, parameters)?;
        }
    }
    let changes = found.joined.iter().zip(narrowest).map(|(one, narrowest)| AlgorithmChange {
        name: one.slots.join(", "),
        before: narrowest,
        after: Some(f64::from(one.max) - f64::from(one.min)),
        rows_kept: None,
    });
    let changes = changes.collect();
    kept.extend(
        found.kept.iter().map(|one| format!("`{}`: {}", one.nodes.join("`, `"), one.reason)),
    );
    Ok((changes, kept))
}
