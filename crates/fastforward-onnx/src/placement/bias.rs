//! Biases as 32-bit integers at the scale of the products they are added to.

use std::collections::HashMap;

use fastforward_core::quantization::affine::AffineGrid;
use serde::Serialize;

use super::grid::{Grid, bias_codes};
use super::{ActivationKind, PlacedActivation, PlacedConstant, Reader};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Constant, Model};
use crate::proto::NodeProto;
use crate::tree::{NodeId, Role, Site, Tree};

/// What became of a bias whose node has a quantized input and a quantized weight.
///
/// An integer kernel adds the bias to sums of products of codes, so its scale is `s_x · s_w` (per output channel when the
/// weight's is) and its zero point 0. The rule takes every bias that has no quantizer of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BiasOutcome {
    /// The bias's site, or its name where it has none.
    pub site: String,
    /// The constant.
    pub value: String,
    /// Why it stays in float; `None` when it is rounded to `int32` codes.
    pub left_because: Option<String>,
}

/// The biases to quantize, and what became of all of them.
pub(super) fn place<'m>(
    model: &'m Model,
    tree: &Tree,
    constants: &[PlacedConstant<'m>],
    activations: &[PlacedActivation],
) -> Result<(Vec<PlacedConstant<'m>>, Vec<BiasOutcome>)> {
    let in_main = |site: &&Site| site.node.graph.is_empty();
    let sites: HashMap<(usize, usize, bool), &Site> = tree
        .sites()
        .iter()
        .filter(in_main)
        .map(|site| ((site.node.index, site.position, site.role == Role::Output), site))
        .collect();
    let known: HashMap<&str, Constant<'m>> =
        model.constants().map(|constant| (constant.name(), constant)).collect();
    let rule = Rule { sites, known, constants, activations };

    let mut placed: Vec<PlacedConstant<'m>> = Vec::new();
    let mut outcomes = Vec::new();
    for (index, node) in model.graph().node.iter().enumerate() {
        let Some((constant, name, decision)) = rule.decide(index, node)? else { continue };
        let value = constant.name().to_owned();
        let left_because = match decision {
            Err(reason) => Some(reason),
            Ok((scale, axis)) => {
                let reader = Reader { node: NodeId { graph: Vec::new(), index }, position: BIAS };
                let same = |one: &&mut PlacedConstant<'_>| {
                    one.constant.name() == value
                        && matches!(&one.grid, Grid::Bias { scale: s, axis: a } if *s == scale && *a == axis)
                };
                match placed.iter_mut().find(same) {
                    Some(one) => {
                        one.sites.push(name.clone());
                        one.readers.push(reader);
                    }
                    None => placed.push(PlacedConstant {
                        sites: vec![name.clone()],
                        role: Role::Bias,
                        owner: Vec::new(),
                        constant,
                        grid: Grid::Bias { scale, axis },
                        readers: vec![reader],
                    }),
                }
                None
            }
        };
        outcomes.push(BiasOutcome { site: name, value, left_because });
    }
    Ok((placed, outcomes))
}

/// The positions of the inputs of `Conv`, `ConvTranspose` and `Gemm`.
const DATA: usize = 0;
const WEIGHT: usize = 1;
const BIAS: usize = 2;

struct Rule<'a, 'm> {
    /// By node, position, and whether it is an output.
    sites: HashMap<(usize, usize, bool), &'a Site>,
    known: HashMap<&'m str, Constant<'m>>,
    constants: &'a [PlacedConstant<'m>],
    activations: &'a [PlacedActivation],
}

/// The scales and their axis, or why the bias stays in float.
type Decision = Result<(Vec<f32>, Option<usize>), String>;

impl<'m> Rule<'_, 'm> {
    /// The bias of a node between a quantized input and weight; `None` where the rule does not apply.
    fn decide(
        &self,
        index: usize,
        node: &NodeProto,
    ) -> Result<Option<(Constant<'m>, String, Decision)>> {
        if !["Conv", "ConvTranspose", "Gemm"].iter().any(|op| node.is_standard(op)) {
            return Ok(None);
        }
        let Some(bias) = node.input_at(BIAS).and_then(|name| self.known.get(name)) else {
            return Ok(None);
        };
        if bias.info()?.dtype != DType::F32 {
            return Ok(None);
        }
        let site = self.sites.get(&(index, BIAS, false));
        if site.is_some_and(|site| !site.slot.is_stub()) {
            return Ok(None);
        }
        let reads = |reader: &Reader, position| {
            reader.node.graph.is_empty()
                && reader.node.index == index
                && reader.position == position
        };
        let weight = self.constants.iter().find(|one| one.readers.iter().any(|r| reads(r, WEIGHT)));
        let (Some(weight), Some(input)) = (weight, self.input(index, node)) else {
            return Ok(None);
        };
        let name = site.map_or_else(|| bias.name().to_owned(), |site| site.name.clone());
        let decision = self.scales(index, node, bias, weight, input)?;
        Ok(Some((bias.clone(), name, decision)))
    }

    /// The quantized form in which the node reads its data.
    fn input(&self, index: usize, node: &NodeProto) -> Option<&PlacedActivation> {
        let own = self.sites.get(&(index, DATA, false)).filter(|site| !site.slot.is_stub());
        match own {
            Some(site) => self.activations.iter().find(|one| one.sites.contains(&site.name)),
            None => self.activations.iter().find(|one| {
                matches!(one.kind, ActivationKind::Output(..))
                    && Some(one.value.as_str()) == node.input_at(DATA)
            }),
        }
    }

    fn scales(
        &self,
        index: usize,
        node: &NodeProto,
        bias: &Constant<'m>,
        weight: &PlacedConstant<'m>,
        input: &PlacedActivation,
    ) -> Result<Decision> {
        let left = |reason: &str| Ok(Err(reason.to_owned()));
        if input.axis.is_some() {
            return left("the input is not quantized per tensor");
        }
        if node.float_or("alpha", 1.0) != 1.0 || node.float_or("beta", 1.0) != 1.0 {
            return left("the node scales its product or its bias");
        }
        let Grid::Quantizer(quantizer) = &weight.grid else {
            return left("the weight is a bias elsewhere");
        };
        let Some(AffineGrid { granularity, parameters }) = quantizer.static_grid() else {
            return left("the weight's quantizer is not a LinearQuantizer");
        };
        let weight_shape = weight.constant.info()?.shape;
        let bias_shape = bias.info()?.shape;
        let len: usize = bias_shape.iter().product();
        let input_scale = input.parameters.scale[0];

        let (scale, axis) = if parameters.scale.len() == 1 {
            (vec![input_scale * parameters.scale[0]], None)
        } else {
            let channel = self.sites.get(&(index, WEIGHT, false)).and_then(|s| s.channel_axis);
            let tile = granularity.tile_shape(&weight_shape).map_err(|e| weight.wrong(e))?;
            let per_channel = channel.is_some_and(|channel| {
                (0..tile.len()).all(|axis| {
                    if axis == channel { tile[axis] == 1 } else { tile[axis] == weight_shape[axis] }
                })
            });
            if !per_channel {
                return left("the weight is quantized neither per tensor nor per output channel");
            }
            // The weight of a ConvTranspose in groups has one index for a channel of each group.
            let groups = usize::try_from(node.int_or("group", 1)).unwrap_or(1).max(1);
            let groups = if node.is_standard("ConvTranspose") { groups } else { 1 };
            let scale: Vec<f32> = (0..groups)
                .flat_map(|_| parameters.scale.iter().map(|scale| input_scale * scale))
                .collect();
            if len != scale.len() || bias_shape.last() != Some(&len) {
                return left("the bias does not hold one value per output channel");
            }
            (scale, Some(bias_shape.len() - 1))
        };
        let scale_of: Vec<f32> = (0..len).map(|at| scale[at % scale.len()]).collect();
        let fits = |code: &f32| (i32::MIN as f32..i32::MAX as f32).contains(code);
        if !bias_codes(&bias.to_f32()?, &scale_of).iter().all(fits) {
            return left("the bias does not fit int32 at the scale of the products");
        }
        Ok(Ok((scale, axis)))
    }
}
