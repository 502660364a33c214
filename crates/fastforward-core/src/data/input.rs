//! How a stored tensor becomes the input of a model.

use std::ops::Range;

use super::tensor::StoredTensor;
use super::{ArrayData, InputType, NamedArray};
use crate::{Error, ErrorKind};

/// How a stored tensor becomes one input of a model. Everything here speaks of *one sample*, without the batch axis.
///
/// In this order: the elements are reshaped, transposed, multiplied by `scale` or divided by `divide_by`, normalized as
/// `(x - mean) / std`, and rounded once to the input's type. The arithmetic is done in `f64`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSpec {
    /// The tensor in the data; `None` for the tensor of the input's name, or the only one there is.
    pub tensor: Option<String>,
    /// The element type the model takes; `None` to take it from the model.
    pub dtype: Option<InputType>,
    /// A factor.
    pub scale: Option<f64>,
    /// A divisor, as in `x / 255`.
    pub divide_by: Option<f64>,
    /// Subtracted after scaling: nothing, one value, or one per channel.
    pub mean: Vec<f64>,
    /// Divided by after subtracting the mean: nothing, one value, or one per channel.
    pub std: Vec<f64>,
    /// The axis of a sample that the values of `mean` and `std` belong to, negative ones counted from the last;
    /// `None` for the first.
    pub channel_axis: Option<isize>,
    /// The shape of one sample.
    pub reshape: Option<Vec<usize>>,
    /// The order of a sample's axes in the input: `[2, 0, 1]` makes channels-first of channels-last.
    pub transpose: Option<Vec<usize>>,
}

/// An input of a model, as far as the model says.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInput {
    /// The input's name.
    pub name: String,
    /// The element type it takes.
    pub dtype: InputType,
    /// One extent per dimension, the batch axis first, `None` where any will do; `None` when even the rank is open.
    pub shape: Option<Vec<Option<usize>>>,
}

/// An input with the tensor that feeds it, all shapes checked.
#[derive(Clone, Debug)]
pub(super) struct BoundInput {
    name: String,
    dtype: InputType,
    pub(super) tensor: StoredTensor,
    /// The shape of one sample as the model gets it.
    sample_shape: Vec<usize>,
    /// For each element of a sample as the model gets it, its place in the stored sample; `None` for the same place.
    order: Option<Vec<usize>>,
    scaling: Scaling,
    /// Mean and standard deviation by channel, and the elements from one channel to the next.
    normalization: Option<Normalization>,
}

#[derive(Clone, Copy, Debug)]
enum Scaling {
    None,
    Multiply(f64),
    Divide(f64),
}

#[derive(Clone, Debug)]
struct Normalization {
    mean: Vec<f64>,
    std: Vec<f64>,
    /// The elements of a sample that share a channel before the next channel comes.
    inner: usize,
}

impl BoundInput {
    /// Checks that the tensor fits the input, or says everything that is wrong.
    pub(super) fn new(
        input: &ModelInput,
        spec: &InputSpec,
        tensor: StoredTensor,
    ) -> Result<Self, Vec<String>> {
        let mut problems = vec![];
        let place = format!("input `{}`", input.name);
        let stored: Vec<usize> = tensor.sample_shape().to_vec();
        let mut sample_shape = stored.clone();
        if tensor.shape.is_empty() {
            problems.push(format!("{place}: {tensor} is a single number without a batch axis"));
            return Err(problems);
        }
        if let Some(reshape) = &spec.reshape {
            if element_count(reshape) == element_count(&stored) {
                sample_shape.clone_from(reshape);
            } else {
                problems.push(format!(
                    "{place}: reshape {reshape:?} does not fit {tensor}: its samples have shape {stored:?}, {} elements",
                    stored.iter().product::<usize>()
                ));
                return Err(problems);
            }
        }
        let mut order = None;
        if let Some(axes) = &spec.transpose {
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            if sorted.iter().copied().ne(0..sample_shape.len()) {
                problems.push(format!(
                    "{place}: transpose {axes:?} must name each axis of a sample of shape {sample_shape:?} once"
                ));
                return Err(problems);
            }
            order = Some(transposed_order(&sample_shape, axes));
            sample_shape = axes.iter().map(|&axis| sample_shape[axis]).collect();
        }
        problems.extend(shape_mismatch(input, &sample_shape, &tensor, spec.reshape.is_none()));

        let dtype = spec.dtype.unwrap_or(input.dtype);
        if dtype != input.dtype {
            problems.push(format!("{place}: dtype is {dtype}, the model takes {}", input.dtype));
        }
        let scaling = match (spec.scale, spec.divide_by) {
            (None, None) => Scaling::None,
            (Some(factor), None) => Scaling::Multiply(factor),
            (None, Some(divisor)) => Scaling::Divide(divisor),
            (Some(_), Some(_)) => {
                problems.push(format!("{place}: give `scale` or `divide_by`, not both"));
                Scaling::None
            }
        };
        let normalization = match normalization(spec, &sample_shape) {
            Ok(normalization) => normalization,
            Err(what) => {
                problems.push(format!("{place}: {what}"));
                None
            }
        };
        if !dtype.is_float() {
            if tensor.element.is_float() {
                problems.push(format!(
                    "{place}: the model takes {dtype}, {tensor} holds {}; store integers",
                    tensor.element
                ));
            }
            if !matches!(scaling, Scaling::None) || normalization.is_some() {
                problems.push(format!(
                    "{place}: the model takes {dtype}, integers cannot be scaled or normalized"
                ));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let name = input.name.clone();
        Ok(Self { name, dtype, tensor, sample_shape, order, scaling, normalization })
    }

    /// Some samples as the model gets them.
    pub(super) fn read(&self, samples: Range<usize>) -> Result<NamedArray, Error> {
        let count = samples.len();
        let first = samples.start;
        let bytes = self.tensor.read(samples)?;
        let data = match self.dtype.integer_range() {
            None => ArrayData::Float(self.floats(&bytes, first)?),
            Some(range) => ArrayData::Integer(self.integers(&bytes, first, range)?),
        };
        let mut shape = vec![count];
        shape.extend(&self.sample_shape);
        Ok(NamedArray { name: self.name.clone(), dtype: self.dtype, shape, data })
    }

    fn floats(&self, bytes: &[u8], first: usize) -> Result<Vec<f32>, Error> {
        let mut values = self.tensor.element.to_f64(bytes);
        let wrong = values.iter().filter(|value| !value.is_finite()).count();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let more = if wrong > 1 { format!(" (and {} more)", wrong - 1) } else { String::new() };
            return Err(self.wrong_value(first, at, format!("{}{more}", values[at])));
        }
        match self.scaling {
            Scaling::None => {}
            Scaling::Multiply(factor) => values.iter_mut().for_each(|value| *value *= factor),
            Scaling::Divide(divisor) => values.iter_mut().for_each(|value| *value /= divisor),
        }
        let mut values = self.reorder(values);
        if let Some(Normalization { mean, std, inner }) = &self.normalization {
            for (at, value) in values.iter_mut().enumerate() {
                let channel = at / inner % mean.len();
                *value = (*value - mean[channel]) / std[channel];
            }
        }
        let limit = self.dtype.float_limit();
        let floats: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        match floats.iter().position(|value| value.is_nan() || value.abs() > limit) {
            None => Ok(floats),
            Some(at) => {
                let what =
                    format!("a value that becomes {:e}, too large for {}", values[at], self.dtype);
                Err(self.wrong_value(first, self.stored_position(at), what))
            }
        }
    }

    fn integers(&self, bytes: &[u8], first: usize, range: (i64, i64)) -> Result<Vec<i64>, Error> {
        // `new` refused floating-point tensors for integer inputs.
        let values = self.tensor.element.to_i128(bytes).unwrap_or_default();
        let (low, high) = (i128::from(range.0), i128::from(range.1));
        if let Some(at) = values.iter().position(|value| !(low..=high).contains(value)) {
            let what = format!("{}, outside {low}..={high} of {}", values[at], self.dtype);
            return Err(self.wrong_value(first, at, what));
        }
        Ok(self.reorder(values).into_iter().map(|value| value as i64).collect())
    }

    fn reorder<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match &self.order {
            None => values,
            Some(order) if order.is_empty() => values,
            Some(order) => values
                .chunks_exact(order.len())
                .flat_map(|sample| order.iter().map(|&from| sample[from]))
                .collect(),
        }
    }

    fn stored_position(&self, at: usize) -> usize {
        match &self.order {
            None => at,
            Some(order) => at / order.len() * order.len() + order[at % order.len()],
        }
    }

    fn wrong_value(&self, first: usize, at: usize, what: String) -> Error {
        let shape = self.tensor.sample_shape();
        let sample_len: usize = shape.iter().product();
        let mut rest = at % sample_len;
        let mut index: Vec<usize> = vec![];
        for &extent in shape.iter().rev() {
            index.push(rest % extent);
            rest /= extent;
        }
        index.reverse();
        Error::new(
            ErrorKind::InvalidData,
            format!(
                "{}: sample {} has {what} at element {index:?}",
                self.tensor,
                first + at / sample_len
            ),
        )
    }
}

fn shape_mismatch(
    input: &ModelInput,
    sample: &[usize],
    tensor: &StoredTensor,
    may_reshape: bool,
) -> Option<String> {
    let wanted = input.shape.as_ref()?;
    let fits = wanted.len() == sample.len() + 1
        && wanted[1..].iter().zip(sample).all(|(want, have)| want.is_none_or(|want| want == *have));
    if fits {
        return None;
    }
    let show = |extents: &[Option<usize>]| {
        let extents: Vec<String> =
            extents.iter().map(|e| e.map_or_else(|| "?".to_owned(), |e| e.to_string())).collect();
        format!("[{}]", extents.join(", "))
    };
    let mut message = format!(
        "input `{}` takes {}, samples of {tensor} have shape {sample:?}",
        input.name,
        show(wanted)
    );
    let known: Option<Vec<usize>> = wanted.get(1..).and_then(|rest| rest.iter().copied().collect());
    if let Some(known) = known
        && may_reshape
        && element_count(&known) == element_count(sample)
    {
        message.push_str(&format!("; set `reshape = {known:?}` in [inputs.{}]", input.name));
    }
    Some(message)
}

/// `None` when there are more than can be counted.
fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent))
}

fn normalization(spec: &InputSpec, sample: &[usize]) -> Result<Option<Normalization>, String> {
    let (mean, std) = (&spec.mean, &spec.std);
    if mean.is_empty() && std.is_empty() {
        return match spec.channel_axis {
            Some(_) => Err("`channel_axis` needs `mean` or `std`".to_owned()),
            None => Ok(None),
        };
    }
    if let Some(zero) = std.iter().position(|&value| value == 0.0) {
        return Err(format!("`std` {zero} is zero"));
    }
    let channels = mean.len().max(std.len());
    if channels == 1 {
        let one = |values: &[f64], default: f64| vec![values.first().copied().unwrap_or(default)];
        return Ok(Some(Normalization { mean: one(mean, 0.0), std: one(std, 1.0), inner: 1 }));
    }
    let rank = sample.len();
    let axis = spec.channel_axis.unwrap_or(0);
    let from_first = if axis < 0 { axis.checked_add(rank as isize) } else { Some(axis) };
    let axis = from_first
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| {
        format!("`channel_axis` {axis} is no axis of a sample of shape {sample:?}")
    })?;
    let spread = |name: &str, values: &[f64], default: f64| match values {
        [] => Ok(vec![default; channels]),
        [one] => Ok(vec![*one; channels]),
        many if many.len() == sample[axis] => Ok(many.to_vec()),
        many => Err(format!(
            "`{name}` has {} values, axis {axis} of a sample of shape {sample:?} has {}",
            many.len(),
            sample[axis]
        )),
    };
    let inner = sample[axis + 1..].iter().product();
    Ok(Some(Normalization {
        mean: spread("mean", mean, 0.0)?,
        std: spread("std", std, 1.0)?,
        inner,
    }))
}

/// For each element in the transposed order, its place before.
fn transposed_order(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let mut order = vec![0];
    for &axis in axes {
        order = order
            .iter()
            .flat_map(|&start| (0..shape[axis]).map(move |at| (start, at)))
            .map(|(start, at)| start + at * strides[axis])
            .collect();
    }
    order
}
