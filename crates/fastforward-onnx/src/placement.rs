//! What the quantizers of a tree ask of its graph: decided once, for simulation and export alike.

mod bias;
mod find;
mod grid;

use std::sync::Arc;

use fastforward_core::quantization::affine::{AffineParameters, SavedQuantizer};
use fastforward_core::quantization::quantizer::RangeSettable;
use fastforward_core::quantization::{Granularity, Quantizer};

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, Model};
use crate::tree::{NestedGraph, NodeId, Role, Site, Tree};

pub use bias::BiasOutcome;
pub(crate) use find::ConstantFinder;
#[cfg(test)]
pub(crate) use grid::CodesOf;
pub(crate) use grid::{Coded, Decode, Grid, Mismatch, SomeCodes};

/// Every quantized constant and activation of a graph.
pub(crate) struct Placement<'m> {
    /// In the order of the sites, then biases.
    pub(crate) constants: Vec<PlacedConstant<'m>>,
    /// In the order of the sites.
    pub(crate) activations: Vec<PlacedActivation>,
    /// What became of the biases between quantized weights and inputs.
    pub(crate) biases: Vec<BiasOutcome>,
}

/// A constant that some nodes shall read quantized.
pub(crate) struct PlacedConstant<'m> {
    /// The sites that ask for it, or the bias's site.
    pub(crate) sites: Vec<String>,
    pub(crate) role: Role,
    /// The graph that holds the constant.
    pub(crate) owner: Vec<NestedGraph>,
    pub(crate) constant: Constant<'m>,
    pub(crate) grid: Grid,
    pub(crate) readers: Vec<Reader>,
}

/// An input of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    pub(crate) node: NodeId,
    pub(crate) position: usize,
}

/// A value of the main graph that all or some nodes shall read quantized.
#[derive(Clone, Debug)]
pub(crate) struct PlacedActivation {
    /// The sites that ask for it. Inputs with the very parameters of the producer's output are among the output's.
    pub(crate) sites: Vec<String>,
    /// The value in the unchanged graph.
    pub(crate) value: String,
    pub(crate) parameters: AffineParameters,
    /// The axis with parameters of its own, as the quantizer states it; `None` per tensor.
    pub(crate) axis: Option<isize>,
    pub(crate) kind: ActivationKind,
}

/// Who sees the quantized value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActivationKind {
    /// Everybody: node and output position that produce it.
    Output(usize, usize),
    /// These readers.
    Inputs(Vec<Reader>),
}

impl Reader {
    /// Where in the graph `owner` the reader stands, or the node that holds it.
    pub(crate) fn position_in(&self, owner: &[NestedGraph]) -> usize {
        self.node.graph.get(owner.len()).map_or(self.node.index, |step| step.node)
    }
}

impl PlacedConstant<'_> {
    /// The first reader's position in the graph that holds the constant.
    pub(crate) fn first_reader(&self) -> usize {
        self.readers.iter().map(|reader| reader.position_in(&self.owner)).min().unwrap_or(0)
    }
}

/// Decides for every set site of `tree`, which is a tree of `model`.
///
/// # Errors
/// `Quantizer` naming each site whose quantizer has no range, or cannot be expressed where it stands.
pub(crate) fn place<'m>(model: &'m Model, tree: &Tree) -> Result<Placement<'m>> {
    let mut placer = Placer {
        finder: ConstantFinder::new(model),
        placed: Vec::new(),
        activations: Vec::new(),
        problems: Vec::new(),
    };
    for site in tree.set_sites() {
        match site.role {
            Role::Weight | Role::Bias | Role::Constant => placer.constant(site),
            Role::Output => placer.output(site),
            Role::Input => {}
        }
    }
    // A value's own quantizer comes before those of its readers, wherever the readers stand in the file.
    for site in tree.set_sites().filter(|site| site.role == Role::Input) {
        placer.input(site);
    }
    if !placer.problems.is_empty() {
        return Err(Error::many(ErrorKind::Quantizer, placer.problems));
    }
    let (constants, biases) = bias::place(model, tree, &placer.placed, &placer.activations)?;
    placer.placed.extend(constants);
    Ok(Placement { constants: placer.placed, activations: placer.activations, biases })
}

struct Placer<'m> {
    finder: ConstantFinder<'m>,
    placed: Vec<PlacedConstant<'m>>,
    activations: Vec<PlacedActivation>,
    problems: Vec<String>,
}

impl<'m> Placer<'m> {
    fn constant(&mut self, site: &Site) {
        let quantizer = site.slot.quantizer();
        // The grid is there at once; a range is computed for all tiles.
        let lacks_range = |one: &dyn RangeSettable| one.quantization_range().is_none();
        if quantizer.static_grid().is_none()
            && quantizer.as_range_settable().is_some_and(lacks_range)
        {
            self.problems.push(unset(site, &*quantizer));
            return;
        }
        let (owner, constant) = match self.finder.find(site) {
            Ok(found) => found,
            Err(error) => return self.problems.push(error.to_string()),
        };
        let reader = Reader { node: site.node.clone(), position: site.position };
        let same = |placed: &&mut PlacedConstant<'_>| {
            placed.owner == owner
                && placed.constant.name() == site.value
                && matches!(&placed.grid, Grid::Quantizer(other) if Arc::ptr_eq(other, &quantizer))
        };
        if let Some(placed) = self.placed.iter_mut().find(same) {
            placed.sites.push(site.name.clone());
            placed.readers.push(reader);
            return;
        }
        self.placed.push(PlacedConstant {
            sites: vec![site.name.clone()],
            role: site.role,
            owner,
            constant,
            grid: Grid::Quantizer(quantizer),
            readers: vec![reader],
        });
    }

    fn output(&mut self, site: &Site) {
        match activation_parameters(site) {
            Ok((parameters, axis)) => self.activations.push(PlacedActivation {
                sites: vec![site.name.clone()],
                value: site.value.clone(),
                parameters,
                axis,
                kind: ActivationKind::Output(site.node.index, site.position),
            }),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn input(&mut self, site: &Site) {
        let (parameters, axis) = match activation_parameters(site) {
            Ok(found) => found,
            Err(problem) => return self.problems.push(problem),
        };
        let reader = Reader { node: site.node.clone(), position: site.position };
        let same = |placed: &&mut PlacedActivation| {
            placed.value == site.value
                && placed.axis == axis
                && same_grid(&placed.parameters, &parameters)
        };
        match self.activations.iter_mut().find(same) {
            Some(placed) => {
                placed.sites.push(site.name.clone());
                if let ActivationKind::Inputs(readers) = &mut placed.kind {
                    readers.push(reader);
                }
            }
            None => self.activations.push(PlacedActivation {
                sites: vec![site.name.clone()],
                value: site.value.clone(),
                parameters,
                axis,
                kind: ActivationKind::Inputs(vec![reader]),
            }),
        }
    }
}

/// The parameters and the axis of an activation's quantizer, or what is wrong with it.
fn activation_parameters(site: &Site) -> Result<(AffineParameters, Option<isize>), String> {
    let quantizer = site.slot.quantizer();
    let (config, parameters) = match quantizer.to_saved() {
        Some(SavedQuantizer::Linear(config, Some(parameters))) => (config, parameters),
        Some(SavedQuantizer::Linear(_, None)) => return Err(unset(site, &*quantizer)),
        Some(SavedQuantizer::DynamicLinear(_)) => {
            return Err(format!(
                "`{}`: {quantizer} takes its parameters from each batch, which a graph of static \
                 scales cannot hold; use a LinearQuantizer for activations",
                site.name
            ));
        }
        _ => {
            return Err(format!(
                "`{}`: {quantizer} cannot be expressed in a graph; use a LinearQuantizer",
                site.name
            ));
        }
    };
    if !(1..=24).contains(&parameters.num_bits) {
        return Err(format!(
            "`{}`: {quantizer} has codes that 32-bit floats do not tell apart; use 24 bits or fewer",
            site.name
        ));
    }
    let axis = match &config.granularity {
        Granularity::PerTensor => None,
        Granularity::PerChannel { axes } if axes.is_empty() => None,
        Granularity::PerChannel { axes } if axes.len() == 1 => Some(axes[0]),
        _ => {
            return Err(format!(
                "`{}`: {quantizer} cuts an activation into tiles that change with its shape; use \
                 per tensor or per channel along one axis",
                site.name
            ));
        }
    };
    // One scale is one scale, along whatever axis it was found.
    let axis = axis.filter(|_| parameters.scale.len() > 1);
    if axis.is_none() && parameters.scale.len() != 1 {
        return Err(format!(
            "`{}`: {quantizer} has {} scales, expected 1",
            site.name,
            parameters.scale.len()
        ));
    }
    Ok((parameters, axis))
}

/// Whether two parameters give the same codes and the same floats.
fn same_grid(a: &AffineParameters, b: &AffineParameters) -> bool {
    a.num_bits == b.num_bits
        && a.narrow_range == b.narrow_range
        && a.scale == b.scale
        && (0..a.scale.len()).all(|tile| a.rounded_offset(tile) == b.rounded_offset(tile))
}

fn unset(site: &Site, quantizer: &dyn Quantizer) -> String {
    format!(
        "`{}`: {quantizer} has no range yet; calibrate first, or set a range by hand",
        site.name
    )
}
