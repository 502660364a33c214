//! The operators whose gradients are known in closed form.

use fastforward_core::algorithms::layerwise::Windows;

use super::dense::Product;
use super::spatial::{
    Pool, PoolWindows, convolution_input_gradient, convolution_weight_gradient, convolve,
    pool_gradient, pooled,
};
use super::value::Value;
use crate::graph::Model;
use crate::layerwise::layer::windows_of;
use crate::proto::NodeProto;

/// What a node computes. Its first operand is an activation; others are activations or constants.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    /// `Conv`
    Convolution(Windows),
    /// `Gemm` and `MatMul` with a constant.
    Product(Product),
    /// `Add`
    Sum,
    /// `Relu` and `LeakyRelu`: what is negative is multiplied by this.
    Rectify(f32),
    /// `Clip` to these bounds.
    Clip(f32, f32),
    /// Pools; without windows over all positions.
    Pool(Pool, PoolWindows),
    /// `Flatten`: axes before this one become the first, all others the second.
    Flatten(i64),
    /// `Reshape`; 0 keeps an axis, -1 is what is left.
    Reshape(Vec<i64>),
    /// `Identity`, and `Dropout` where nothing is trained.
    Same,
}

impl Operation {
    /// What `node` computes, or why its gradient is not known here. `is_varying` tells whether a name is an activation's.
    pub(super) fn of(
        node: &NodeProto,
        model: &Model,
        is_varying: &dyn Fn(&str) -> bool,
    ) -> Result<Self, String> {
        let operand = |at: usize| node.input_at(at).filter(|name| !name.is_empty());
        let is_standard = node.is_standard(node.op_type());
        let results = node.output.iter().filter(|name| !name.is_empty()).count();
        if !is_standard || (results != 1 && node.op_type() != "Dropout") {
            return Err("its gradient is not known here".to_owned());
        }
        let varying: Vec<usize> =
            (0..node.input.len()).filter(|&at| operand(at).is_some_and(is_varying)).collect();
        let first_only = || match varying.as_slice() {
            [0] => Ok(()),
            _ => Err("it has other operands than one activation and constants".to_owned()),
        };
        let rank_of = |at: usize| -> Result<Vec<usize>, String> {
            let constant = operand(at).and_then(|name| model.constant(name));
            let constant = constant.ok_or_else(|| "its weight is no constant".to_owned())?;
            constant.info().map(|info| info.shape).map_err(|error| error.to_string())
        };
        let number = |at: usize, attribute: &str, default: f32| -> Result<f32, String> {
            let Some(name) = operand(at) else { return Ok(node.float_or(attribute, default)) };
            let values = model.constant(name).map(|constant| constant.to_f32()).transpose();
            match values.map_err(|error| error.to_string())?.as_deref() {
                Some([single]) => Ok(*single),
                _ => Err(format!("its bound `{name}` is no constant number")),
            }
        };
        if node.op_type() != "Add" {
            first_only()?;
        }
        match node.op_type() {
            "Conv" => {
                let shape = rank_of(1)?;
                let groups = usize::try_from(node.int_or("group", 1)).unwrap_or(0);
                let [rows, channels, kernel @ ..] = shape.as_slice() else {
                    return Err(format!("a weight of shape {shape:?} is no convolution's"));
                };
                if groups == 0 || !rows.is_multiple_of(groups) || kernel.is_empty() {
                    return Err(format!("{groups} groups do not divide a weight of {shape:?}"));
                }
                if kernel.len() > 3 {
                    return Err("it has more than three axes".to_owned());
                }
                Ok(Self::Convolution(windows_of(node, *channels, groups, kernel)?))
            }
            "Gemm" | "MatMul" => {
                let shape = rank_of(1)?;
                if shape.len() != 2 || node.int_or("transA", 0) != 0 {
                    return Err("it is no product of rows with one matrix".to_owned());
                }
                let is_gemm = node.op_type() == "Gemm";
                let factor = |name| if is_gemm { node.float_or(name, 1.0) } else { 1.0 };
                Ok(Self::Product(Product {
                    transposed: is_gemm && node.int_or("transB", 0) != 0,
                    alpha: factor("alpha"),
                    beta: factor("beta"),
                }))
            }
            "Add" => Ok(Self::Sum),
            "Relu" => Ok(Self::Rectify(0.0)),
            "LeakyRelu" => Ok(Self::Rectify(node.float_or("alpha", 0.01))),
            "Clip" => {
                let (lo, hi) = (number(1, "min", f32::MIN)?, number(2, "max", f32::MAX)?);
                Ok(Self::Clip(lo, hi))
            }
            "GlobalAveragePool" => Ok(Self::Pool(Pool::Average { include_padding: false }, None)),
            "GlobalMaxPool" => Ok(Self::Pool(Pool::Max, None)),
            "MaxPool" | "AveragePool" => {
                if node.int_or("ceil_mode", 0) != 0 {
                    return Err("`ceil_mode` has no gradient here".to_owned());
                }
                let kernel = node.find_attribute("kernel_shape").map(|one| &one.ints[..]);
                let sizes = kernel.unwrap_or(&[]).iter().map(|&size| usize::try_from(size).ok());
                let kernel: Option<Vec<usize>> = sizes.collect();
                let kernel = kernel.filter(|kernel| (1..=3).contains(&kernel.len()));
                let kernel = kernel.ok_or_else(|| "its windows have no sizes".to_owned())?;
                let windows = windows_of(node, 1, 1, &kernel)?;
                if node.op_type() == "MaxPool" {
                    if kernel.len() > 2 {
                        return Err("maxima over three axes have no gradient here".to_owned());
                    }
                    return Ok(Self::Pool(Pool::Max, Some(windows)));
                }
                if windows.dilations.iter().any(|&dilation| dilation != 1) {
                    return Err("means over dilated windows have no gradient here".to_owned());
                }
                let include_padding = node.int_or("count_include_pad", 0) != 0;
                Ok(Self::Pool(Pool::Average { include_padding }, Some(windows)))
            }
            "Flatten" => Ok(Self::Flatten(node.int_or("axis", 1))),
            "Reshape" => {
                let constant = operand(1).and_then(|name| model.constant(name));
                let shape = constant.map(|constant| constant.to_i64()).transpose();
                match shape.map_err(|error| error.to_string())? {
                    Some(shape) if node.int_or("allowzero", 0) == 0 => Ok(Self::Reshape(shape)),
                    _ => Err("its shape is no constant".to_owned()),
                }
            }
            "Identity" | "Dropout" => Ok(Self::Same),
            _ => Err("its gradient is not known here".to_owned()),
        }
    }

    /// How many of a node's inputs it reads as operands; others are settings that stand in the operation.
    pub(super) fn operands(&self) -> usize {
        match self {
            Self::Convolution(_) | Self::Product(_) => 3,
            Self::Sum => 2,
            _ => 1,
        }
    }

    /// The result.
    pub(super) fn forward(&self, operands: &[&Value]) -> Result<Value, String> {
        let (x, second) = (operands[0], operands.get(1));
        let constant = || second.ok_or_else(|| "it has no second operand".to_owned());
        match self {
            Self::Convolution(windows) => {
                convolve(windows, x, constant()?, operands.get(2).copied())
            }
            Self::Product(product) => product.forward(x, constant()?, operands.get(2).copied()),
            Self::Sum => {
                let second = constant()?;
                // The smaller one is repeated.
                match x.data.len() < second.data.len() {
                    true => second.plus(x),
                    false => x.plus(second),
                }
            }
            Self::Rectify(slope) => Ok(x.map(|x| if x < 0.0 { slope * x } else { x })),
            Self::Clip(lo, hi) => Ok(x.map(|x| x.max(*lo).min(*hi))),
            Self::Pool(pool, windows) => pooled(*pool, windows, x),
            Self::Flatten(axis) => {
                let rank = x.shape.len() as i64;
                let axis = if *axis < 0 { axis + rank } else { *axis };
                let axis = usize::try_from(axis).ok().filter(|&axis| axis <= x.shape.len());
                let axis = axis.ok_or_else(|| format!("no such axis in {:?}", x.shape))?;
                let (first, second) = x.shape.split_at(axis);
                let shape = vec![first.iter().product(), second.iter().product()];
                Ok(Value { shape, data: x.data.clone() })
            }
            Self::Reshape(to) => Ok(Value { shape: reshaped(to, x)?, data: x.data.clone() }),
            Self::Same => Ok(x.clone()),
        }
    }

    /// The gradient of operand `at`, of which the loss has `gradient` by the result.
    pub(super) fn backward(
        &self,
        operands: &[&Value],
        at: usize,
        gradient: &[f32],
    ) -> Result<Vec<f32>, String> {
        let x = operands[0];
        let masked = |passes: &dyn Fn(f32) -> f32| {
            x.data.iter().zip(gradient).map(|(x, gradient)| passes(*x) * gradient).collect()
        };
        match (self, at) {
            (Self::Convolution(windows), 0) => {
                convolution_input_gradient(windows, x, operands[1], gradient)
            }
            (Self::Convolution(windows), 1) => {
                convolution_weight_gradient(windows, x, operands[1], gradient)
            }
            (Self::Product(product), 0) => product.input_gradient(x, operands[1], gradient),
            (Self::Product(product), 1) => product.weight_gradient(x, operands[1], gradient),
            (Self::Sum, _) if operands[at].data.len() == gradient.len() => Ok(gradient.to_vec()),
            (Self::Sum, _) => Err("an activation that is repeated has no gradient here".to_owned()),
            (Self::Rectify(slope), 0) => Ok(masked(&|x| if x > 0.0 { 1.0 } else { *slope })),
            (Self::Clip(lo, hi), 0) => Ok(masked(&|x| if x > *lo && x < *hi { 1.0 } else { 0.0 })),
            (Self::Pool(pool, windows), 0) => pool_gradient(*pool, windows, x, gradient),
            (Self::Flatten(_) | Self::Reshape(_) | Self::Same, 0) => Ok(gradient.to_vec()),
            _ => Err("its constants have no gradient here".to_owned()),
        }
    }
}

fn reshaped(to: &[i64], x: &Value) -> Result<Vec<usize>, String> {
    let wrong = || format!("{:?} cannot become {to:?}", x.shape);
    let mut shape = Vec::new();
    for (axis, &size) in to.iter().enumerate() {
        shape.push(match size {
            0 => *x.shape.get(axis).ok_or_else(wrong)?,
            -1 => 1,
            _ => usize::try_from(size).map_err(|_| wrong())?,
        });
    }
    let known: usize = shape.iter().product();
    if let Some(free) = to.iter().position(|&size| size == -1) {
        shape[free] = x.data.len().checked_div(known).ok_or_else(wrong)?;
    }
    if shape.iter().product::<usize>() != x.data.len() {
        return Err(wrong());
    }
    Ok(shape)
}
