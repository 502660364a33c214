//! The way from a layer to the one that reads it, through what keeps a factor per channel.

use super::layer::{ChannelAxis, Layer};
use crate::graph::{Dim, GraphIndex, Model};
use crate::proto::NodeProto;
use crate::shapes::ShapeTable;

/// What lies between two layers.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    /// The node that reads the value at the end.
    pub(super) reader: usize,
    /// The nodes on the way.
    pub(super) nodes: Vec<usize>,
    /// Where the channels stand in what it reads.
    pub(super) axis: Option<ChannelAxis>,
    /// Constants that are added on the way: node and input.
    pub(super) added: Vec<(usize, usize)>,
    pub(super) clips: Vec<Clip>,
}

/// A `Clip` from 0 to a positive bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clip {
    pub(super) node: usize,
    pub(super) bound: f32,
    /// Axes behind the one that counts channels.
    pub(super) from_end: usize,
    /// Whether that axis may count several positions for each channel.
    pub(super) in_blocks: bool,
}

/// Follows the value that `layer` computes to the next layer, or says what is in the way.
///
/// A factor `s > 0` for each channel passes through an operation `f` when `f(x / s) = f(x) / s`.
pub(super) fn follow(
    model: &Model,
    index: &GraphIndex,
    shapes: &ShapeTable,
    layer: &Layer,
    is_layer: &dyn Fn(usize) -> bool,
) -> Result<Path, String> {
    let graph = model.graph();
    let mut walk = Walk {
        model,
        shapes,
        n_channels: layer.layout.outputs(),
        axis: layer.axis,
        in_blocks: false,
        path: Path::default(),
    };
    let mut value = graph.node[layer.node].output.first().map_or("", String::as_str);
    loop {
        if index.is_output(value) {
            return Err(format!("its result `{value}` is returned by the graph"));
        }
        let reader = match index.consumers(value) {
            [] => return Err(format!("nothing reads its result `{value}`")),
            [one] => one,
            uses => return Err(format!("its result `{value}` is read {} times", uses.len())),
        };
        let node = &graph.node[reader.node];
        let Some(input) = reader.input else {
            return Err(format!("a graph nested in `{}` reads its result `{value}`", node.label()));
        };
        if is_layer(reader.node) {
            if input != 0 {
                return Err(format!("`{}` reads its result as a weight or bias", node.label()));
            }
            walk.path.reader = reader.node;
            walk.path.axis = Some(walk.axis);
            return Ok(walk.path);
        }
        let passed = match matches!(node.domain(), "" | "ai.onnx") {
            true => walk.pass(reader.node, node, input),
            false => Err("is not an operator of the standard set".to_owned()),
        };
        passed.map_err(|reason| format!("`{}` ({}) {reason}", node.label(), node.op_type()))?;
        walk.path.nodes.push(reader.node);
        value = node.output.first().map_or("", String::as_str);
    }
}

struct Walk<'a> {
    model: &'a Model,
    shapes: &'a ShapeTable,
    n_channels: usize,
    axis: ChannelAxis,
    in_blocks: bool,
    path: Path,
}

impl Walk<'_> {
    /// Goes behind the node, or says why a factor per channel does not.
    fn pass(&mut self, position: usize, node: &NodeProto, input: usize) -> Result<(), String> {
        match node.op_type() {
            "Add" | "Sub" => return self.add(position, node, input),
            "Mul" => return self.multiply(node, 1 - input.min(1)),
            "Div" if input == 0 => return self.multiply(node, 1),
            _ if input != 0 => return Err("reads it as a setting".to_owned()),
            "Relu" | "LeakyRelu" | "PRelu" | "Identity" | "Abs" | "Neg" => {}
            "Dropout" if self.flag(node, 2).unwrap_or(true) => {
                return Err("drops values at random".to_owned());
            }
            "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => {
                // They move along the axes behind the second, which counts channels.
                if self.channel_axis()? != 1 {
                    return Err("does not keep channels apart".to_owned());
                }
            }
            "Dropout" => {}
            "Clip" => self.clip(position, node)?,
            "Pad" => self.pad(node)?,
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.reshape(node)?,
            "Transpose" => self.transpose(node)?,
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" => self.reduce(node)?,
            _ => return Err("does not keep a factor per channel".to_owned()),
        }
        if node.output.iter().skip(1).any(|name| !name.is_empty()) {
            return Err("has a second result".to_owned());
        }
        Ok(())
    }

    fn channel_axis(&self) -> Result<usize, String> {
        self.axis.index().ok_or_else(|| {
            "stands where the number of axes is unknown (give the shapes of activations)".to_owned()
        })
    }

    fn constant(&self, node: &NodeProto, input: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(name) = node.input_at(input) else { return Ok(None) };
        let constant = self.model.constant(name);
        let values = constant.and_then(|constant| constant.to_i64().ok());
        values.map(Some).ok_or_else(|| format!("reads the setting `{name}`, which is not constant"))
    }

    /// An optional boolean input, `false` where it is left out; `None` where it is computed.
    fn flag(&self, node: &NodeProto, input: usize) -> Option<bool> {
        let values = self.constant(node, input).ok()?;
        Some(values.is_some_and(|values| values != [0]))
    }

    /// The shape of the other operand of two, if it is constant and adds no axes.
    fn operand(&self, node: &NodeProto, input: usize) -> Result<Vec<usize>, String> {
        let name = node.input_at(input).unwrap_or("");
        let info = self.model.constant(name).and_then(|constant| constant.info().ok());
        let Some(info) = info else {
            return Err(format!("reads `{name}`, which is not constant"));
        };
        let rank = info.shape.len();
        let fits = match self.axis.rank {
            Some(known) => rank <= known,
            None => rank <= 1,
        };
        if fits { Ok(info.shape) } else { Err(format!("adds axes by `{name}`")) }
    }

    fn multiply(&self, node: &NodeProto, other: usize) -> Result<(), String> {
        self.operand(node, other).map(drop)
    }

    fn add(&mut self, position: usize, node: &NodeProto, input: usize) -> Result<(), String> {
        let other = 1 - input.min(1);
        let shape = self.operand(node, other)?;
        let len: usize = shape.iter().product();
        let along = shape.len().checked_sub(self.axis.from_end + 1).map_or(1, |axis| shape[axis]);
        if along != len || !len.is_multiple_of(self.n_channels) {
            let name = node.input_at(other).unwrap_or("");
            return Err(format!("adds `{name}`, which is not one number for each channel"));
        }
        self.path.added.push((position, other));
        Ok(())
    }

    fn clip(&mut self, position: usize, node: &NodeProto) -> Result<(), String> {
        let bound = |name: &str, input: usize, open: f32| -> Result<f32, String> {
            if let Some(attribute) = node.find_attribute(name) {
                return Ok(attribute.f());
            }
            let Some(value) = node.input_at(input) else { return Ok(open) };
            let constant = self.model.constant(value).and_then(|one| one.to_f32().ok());
            match constant.as_deref() {
                Some([bound]) => Ok(*bound),
                _ => Err(format!("has the bound `{value}`, which is not constant")),
            }
        };
        let low = bound("min", 1, f32::NEG_INFINITY)?;
        let high = bound("max", 2, f32::INFINITY)?;
        let (is_open, is_shut) = (high >= f32::MAX, low <= f32::MIN);
        if (low == 0.0 || is_shut) && (high == 0.0 || is_open) {
            return Ok(());
        }
        if low == 0.0 && high > 0.0 {
            self.path.clips.push(Clip {
                node: position,
                bound: high,
                from_end: self.axis.from_end,
                in_blocks: self.in_blocks,
            });
            return Ok(());
        }
        Err(format!("clips at {low} and {high}"))
    }

    fn pad(&self, node: &NodeProto) -> Result<(), String> {
        let axis = self.channel_axis()?;
        let rank = self.axis.rank.unwrap_or(0);
        if node.find_attribute("mode").is_none_or(|mode| mode.s() == b"constant") {
            let attribute = node.find_attribute("value").map(|attribute| attribute.f());
            let value = match (attribute, node.input_at(2)) {
                (Some(value), _) => Some(value),
                (None, None) => Some(0.0),
                (None, Some(name)) => {
                    let values = self.model.constant(name).and_then(|one| one.to_f32().ok());
                    values.and_then(|values| values.first().copied())
                }
            };
            if value != Some(0.0) {
                return Err("pads with another value than 0".to_owned());
            }
        }
        let pads = match node.find_attribute("pads").or_else(|| node.find_attribute("paddings")) {
            Some(attribute) => attribute.ints.clone(),
            None => self.constant(node, 1)?.unwrap_or_default(),
        };
        let axes = match self.constant(node, 3)? {
            Some(axes) => axes,
            None => (0..rank as i64).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err("has pads that do not fit its axes".to_owned());
        }
        let touches = axes.iter().enumerate().any(|(at, &padded)| {
            let padded = if padded < 0 { padded + rank as i64 } else { padded };
            padded == axis as i64 && (pads[at] != 0 || pads[at + axes.len()] != 0)
        });
        if touches { Err("pads the axis of channels".to_owned()) } else { Ok(()) }
    }

    fn transpose(&mut self, node: &NodeProto) -> Result<(), String> {
        let axis = self.channel_axis()?;
        let rank = self.axis.rank.unwrap_or(0);
        let order: Vec<i64> = match node.find_attribute("perm") {
            Some(attribute) => attribute.ints.clone(),
            None => (0..rank as i64).rev().collect(),
        };
        let Some(new) = order.iter().position(|&from| from == axis as i64) else {
            return Err("has an order that does not fit its axes".to_owned());
        };
        self.axis = ChannelAxis { from_end: rank - 1 - new, rank: Some(rank) };
        Ok(())
    }

    fn reduce(&mut self, node: &NodeProto) -> Result<(), String> {
        let axis = self.channel_axis()?;
        let rank = self.axis.rank.unwrap_or(0) as i64;
        let axes = match node.find_attribute("axes") {
            Some(attribute) => Some(attribute.ints.clone()),
            None => self.constant(node, 1)?,
        };
        let Some(axes) = axes else {
            return Err("reduces all axes".to_owned());
        };
        let axes: Vec<i64> =
            axes.into_iter().map(|axis| if axis < 0 { axis + rank } else { axis }).collect();
        if axes.contains(&(axis as i64)) {
            return Err("reduces the axis of channels".to_owned());
        }
        if node.int_or("keepdims", 1) == 0 {
            let behind = axes.iter().filter(|&&reduced| reduced > axis as i64).count();
            self.axis = ChannelAxis {
                from_end: self.axis.from_end - behind,
                rank: Some(rank as usize - axes.len()),
            };
        }
        Ok(())
    }

    /// Elements keep their order, so each channel stays a block of its own where an axis counts blocks.
    fn reshape(&mut self, node: &NodeProto) -> Result<(), String> {
        let axis = self.channel_axis()?;
        self.in_blocks = true;
        let rank = self.axis.rank.unwrap_or(0);
        if node.op_type() == "Flatten" {
            let at = node.int_or("axis", 1);
            let at = if at < 0 { at + rank as i64 } else { at };
            if at == axis as i64 {
                self.axis = ChannelAxis { from_end: 0, rank: Some(2) };
                return Ok(());
            }
        }
        let value = |name: Option<&str>| name.and_then(|name| self.shapes.get(name));
        let (Some(from), Some(to)) =
            (value(node.input_at(0)), value(node.output.first().map(String::as_str)))
        else {
            return Err(
                "changes a shape that is unknown (give the shapes of activations)".to_owned()
            );
        };
        let size = |dims: &[Dim]| dims.iter().map(Dim::fixed).product::<Option<usize>>();
        let Some(slice) = from.get(axis..).and_then(size) else {
            return Err("changes a shape whose sizes are unknown".to_owned());
        };
        let new = (0..to.len()).find(|&at| {
            size(&to[at..]) == Some(slice)
                && to[at].fixed().is_some_and(|size| size.is_multiple_of(self.n_channels))
        });
        let Some(new) = new else {
            return Err("does not keep channels apart".to_owned());
        };
        self.axis = ChannelAxis { from_end: to.len() - 1 - new, rank: Some(to.len()) };
        Ok(())
    }
}
