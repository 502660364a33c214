//! Quantization operators in plain nodes.

use super::*;

/// How `x` is split into scales, as far as nodes must know it.
struct Split {
    axis: i64,
    block_size: i64,
}

impl Lowering<'_> {
    /// Folds the node where its inputs are constants, leaves it where the
    /// engine computes it exactly, and otherwise spells it out.
    pub(super) fn quantize_or_dequantize(
        &mut self,
        node: NodeProto,
        scope: &mut Scope<'_>,
    ) -> Result<()> {
        let inputs: Vec<Option<&TensorProto>> =
            (0..3).map(|position| scope.constant(node.input_at(position)?)).collect();
        let all_known =
            (0..3).all(|position| node.input_at(position).is_none() || inputs[position].is_some());
        if all_known {
            let result = qdq::evaluate(&node, &inputs, self.model.folder())?;
            scope.constants.insert(result.name().to_owned(), result);
            return Ok(());
        }
        if qdq::is_quantize(&node) {
            self.quantize(node, scope)
        } else {
            self.dequantize(node, scope)
        }
    }

    fn quantize(&mut self, node: NodeProto, scope: &mut Scope<'_>) -> Result<()> {
        let (Some(x), Some(scale), Some(output)) =
            (node.input_at(0), node.input_at(1), node.output.first())
        else {
            return Err(missing_operand(&node));
        };
        let (x, scale, output) = (x.to_owned(), scale.to_owned(), output.clone());
        let zero_point = node.input_at(2).map(str::to_owned);
        let zero_dtype = zero_point.as_deref().and_then(|name| self.dtype_of(name, scope));
        let dtype =
            qdq::quantized_dtype(&node, zero_dtype).map_err(|e| e.within(describe(&node)))?;
        let split =
            Split { axis: node.int_or("axis", 1), block_size: node.int_or("block_size", 0) };

        let is_native = matches!(dtype, DType::I8 | DType::U8) && split.block_size == 0;
        let is_computed = scope.constant(&scale).is_none();
        if is_native && (is_computed || scope.read_as_integers.contains(&output)) {
            // Integer operators read the result, so it must be integers; a
            // computed scale could not be divided by exactly anyway.
            scope.nodes.push(plain_attributes(node, split.axis, Some(dtype)));
            return Ok(());
        }
        if dtype.int_range().is_none() || dtype.bits() > 16 {
            self.problems.push(format!(
                "{} produces {dtype}, which the execution engine lacks",
                describe(&node)
            ));
            return Ok(());
        }
        let divisor = self.parameter(&node, &x, &scale, &split, scope)?;
        let divisor = self.spread_over(&x, divisor, scope);
        let label = node.label().to_owned();
        let mut chain = Chain { label: &label, value: x.clone() };
        self.step(&mut chain, "Div", &[&divisor], scope);
        let zero_point = self.nonzero_parameter(&node, &x, zero_point.as_deref(), &split, scope)?;
        let (low, high) = dtype.int_range().unwrap_or((0, 0)); // checked above
        let bounds = [low as f32, high as f32];
        let single = match &zero_point {
            None => Some(0.0),
            Some(name) => scope
                .constant(name)
                .and_then(|tensor| data::to_f32(tensor, None).ok())
                .and_then(|values| rounding::one_of(&values)),
        };
        let before_offset = single.map(|zero_point| bounds.map(|bound| bound - zero_point));
        let by_adding = before_offset
            .and_then(|bounds| Some((bounds, rounding::by_adding(bounds, &[single?])?)));
        if let Some((bounds, constants)) = by_adding {
            // Between whole bounds it is the same whether rounding or clipping comes first.
            let [low, high] = bounds.map(|bound| self.constant_f32(&label, &[], &[bound], scope));
            self.step(&mut chain, "Clip", &[&low, &high], scope);
            let added = self.constant_f32(&label, &[], &[constants.added], scope);
            self.step(&mut chain, "Add", &[&added], scope);
            let subtracted = self.constant_f32(&label, &[], &constants.subtracted, scope);
            let operands = [chain.value.as_str(), &subtracted];
            scope.nodes.push(super::node("Sub", &label, &operands, &[&output]));
        } else {
            self.step(&mut chain, "Round", &[], scope);
            if let Some(zero_point) = &zero_point {
                self.step(&mut chain, "Add", &[zero_point], scope);
            }
            let [low, high] = bounds.map(|bound| self.constant_f32(&label, &[], &[bound], scope));
            let operands = [chain.value.as_str(), &low, &high];
            scope.nodes.push(super::node("Clip", &label, &operands, &[&output]));
        }
        self.codes.insert(output, dtype);
        Ok(())
    }

    fn dequantize(&mut self, node: NodeProto, scope: &mut Scope<'_>) -> Result<()> {
        let (Some(x), Some(scale), Some(output)) =
            (node.input_at(0), node.input_at(1), node.output.first())
        else {
            return Err(missing_operand(&node));
        };
        let (x, scale, output) = (x.to_owned(), scale.to_owned(), output.clone());
        let split =
            Split { axis: node.int_or("axis", 1), block_size: node.int_or("block_size", 0) };
        let held_as_float = self.codes.contains_key(&x);
        let known = scope.constant(&x).and_then(|t| DType::from_onnx(t.data_type()).ok());
        let is_simulated_constant = known.is_some_and(is_simulated);
        if !held_as_float && !is_simulated_constant && split.block_size == 0 {
            scope.nodes.push(plain_attributes(node, split.axis, None));
            return Ok(());
        }
        let label = node.label().to_owned();
        let mut chain = Chain { label: &label, value: x.clone() };
        if !held_as_float && !is_simulated_constant {
            let cast = self.names.fresh(&label);
            let mut to_float = super::node("Cast", &label, &[&x], &[&cast]);
            to_float.attribute.push(attribute_int("to", i64::from(DType::F32.to_onnx())));
            scope.nodes.push(to_float);
            chain.value = cast;
        }
        if let Some(zero_point) =
            self.nonzero_parameter(&node, &x, node.input_at(2), &split, scope)?
        {
            self.step(&mut chain, "Sub", &[&zero_point], scope);
        }
        let factor = self.parameter(&node, &x, &scale, &split, scope)?;
        scope.nodes.push(super::node("Mul", &label, &[&chain.value, &factor], &[&output]));
        Ok(())
    }

    /// `QLinearConv` and `QLinearMatMul`: dequantize, compute, quantize.
    pub(super) fn integer_operator(
        &mut self,
        node: NodeProto,
        scope: &mut Scope<'_>,
    ) -> Result<()> {
        let names: Vec<String> =
            (0..9).filter_map(|p| node.input_at(p).map(str::to_owned)).collect();
        let has_bias = node.op_type() == "QLinearConv" && names.len() == 9;
        if names.len() != if has_bias { 9 } else { 8 } || node.output.len() != 1 {
            return Err(missing_operand(&node));
        }
        let label = node.label().to_owned();
        let is_conv = node.op_type() == "QLinearConv";
        // Scales of the rows of the first and of the columns of the second operand.
        let axes = if is_conv { [1, 0] } else { [-2, -1] };
        let mut operands = Vec::new();
        for (position, axis) in [(0, axes[0]), (3, axes[1])] {
            let value = self.names.fresh(&label);
            let inputs = [names[position].as_str(), &names[position + 1], &names[position + 2]];
            let mut dequantize = super::node("DequantizeLinear", &label, &inputs, &[&value]);
            dequantize.attribute.push(attribute_int("axis", axis));
            self.quantize_or_dequantize(dequantize, scope)?;
            operands.push(value);
        }
        if has_bias {
            operands.push(self.integer_bias(&node, &names, scope)?);
        }
        let result = self.names.fresh(&label);
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        let mut float =
            super::node(if is_conv { "Conv" } else { "MatMul" }, &label, &operands, &[&result]);
        float.attribute = node.attribute.clone();
        if is_conv {
            state_kernel_shape(&mut float, &names[3], scope);
        }
        scope.nodes.push(float);
        let mut quantize = super::node(
            "QuantizeLinear",
            &label,
            &[&result, &names[6], &names[7]],
            &[&node.output[0]],
        );
        quantize.attribute.push(attribute_int("axis", 1));
        self.quantize_or_dequantize(quantize, scope)
    }

    /// The bias of a `QLinearConv`, int32 at the product of the two scales.
    fn integer_bias(
        &mut self,
        node: &NodeProto,
        names: &[String],
        scope: &mut Scope<'_>,
    ) -> Result<String> {
        let known = |name: &str| {
            let tensor = scope.constant(name).ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} has the computed operand `{name}`, expected a constant",
                        describe(node)
                    ),
                )
            })?;
            data::to_f32(tensor, self.model.folder())
        };
        let (x_scale, w_scale, bias) = (known(&names[1])?, known(&names[4])?, known(&names[8])?);
        let of = |scales: &[f32], channel: usize| {
            *scales.get(channel).or(scales.first()).unwrap_or(&1.0)
        };
        let values: Vec<f32> = (bias.iter().enumerate())
            .map(|(channel, &code)| code * (of(&x_scale, 0) * of(&w_scale, channel)))
            .collect();
        Ok(self.constant_f32(node.label(), &[values.len()], &values, scope))
    }

    /// A scale or zero point as floats that broadcast over `x`.
    fn parameter(
        &mut self,
        node: &NodeProto,
        x: &str,
        name: &str,
        split: &Split,
        scope: &mut Scope<'_>,
    ) -> Result<String> {
        let place = |error: Error| error.within(describe(node));
        let label = node.label().to_owned();
        let rank = self.rank_of(x, scope);
        let Some(tensor) = scope.constant(name).cloned() else {
            // Computed at run time: integers become floats, one axis is turned into place.
            let float = self.names.fresh(&label);
            let mut cast = super::node("Cast", &label, &[name], &[&float]);
            cast.attribute.push(attribute_int("to", i64::from(DType::F32.to_onnx())));
            scope.nodes.push(cast);
            if split.block_size != 0 {
                return Err(place(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "scales of blocks, computed as `{name}`, cannot be executed, expected a constant"
                    ),
                )));
            }
            let info = scope.infos.get(name);
            let is_single = info
                .and_then(ValueInfo::fixed_shape)
                .is_some_and(|shape| crate::tensor::n_elements(&shape) == Some(1));
            if is_single {
                return Ok(float);
            }
            return Ok(self.align_axis(&label, x, &float, split, scope));
        };
        let (_, shape) = data::dtype_and_shape(&tensor).map_err(place)?;
        let values = data::to_f32(&tensor, self.model.folder()).map_err(place)?;
        if split.block_size == 0 {
            if values.len() == 1 && shape.len() <= 1 {
                return Ok(self.constant_f32(&label, &[], &values, scope));
            }
            let Some(rank) = rank else {
                let float = self.constant_f32(&label, &shape, &values, scope);
                return Ok(self.align_axis(&label, x, &float, split, scope));
            };
            let axis = place_axis(split.axis, rank).ok_or_else(|| {
                place(Error::new(
                    ErrorKind::InvalidGraph,
                    format!("axis {} does not exist in `{x}` of rank {rank}", split.axis),
                ))
            })?;
            let mut aligned = vec![1; rank - axis];
            aligned[0] = values.len();
            return Ok(self.constant_f32(&label, &aligned, &values, scope));
        }

        let axis = place_axis(split.axis, shape.len()).ok_or_else(|| {
            place(Error::new(
                ErrorKind::InvalidGraph,
                format!("axis {} does not exist in scales of shape {shape:?}", split.axis),
            ))
        })?;
        let block_len = usize::try_from(split.block_size).unwrap_or(1).max(1);
        let axis_len = self.axis_len(x, axis, scope);
        if axis_len.is_none() && shape[axis] == 1 {
            return Ok(self.constant_f32(&label, &shape, &values, scope)); // broadcasts
        }
        let repeated_len = axis_len.unwrap_or(shape[axis] * block_len);
        if repeated_len.div_ceil(block_len) != shape[axis] {
            return Err(place(Error::new(
                ErrorKind::InvalidGraph,
                format!(
                    "{} blocks of {block_len} do not cover axis {axis} of `{x}` with {repeated_len} elements",
                    shape[axis]
                ),
            )));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let outer: usize = shape[..axis].iter().product();
        let mut repeated = Vec::with_capacity(outer * repeated_len * inner);
        for position in 0..outer * repeated_len {
            let block = position / repeated_len * shape[axis] + position % repeated_len / block_len;
            repeated.extend_from_slice(&values[block * inner..(block + 1) * inner]);
        }
        let mut repeated_shape = shape.clone();
        repeated_shape[axis] = repeated_len;
        Ok(self.constant_f32(&label, &repeated_shape, &repeated, scope))
    }

    /// The zero point as [`Lowering::parameter`], or `None` where it is 0 everywhere.
    fn nonzero_parameter(
        &mut self,
        node: &NodeProto,
        x: &str,
        name: Option<&str>,
        split: &Split,
        scope: &mut Scope<'_>,
    ) -> Result<Option<String>> {
        let Some(name) = name else {
            return Ok(None);
        };
        if let Some(tensor) = scope.constant(name) {
            let values =
                data::to_f32(tensor, self.model.folder()).map_err(|e| e.within(describe(node)))?;
            if values.iter().all(|&value| value == 0.0) {
                return Ok(None);
            }
        }
        self.parameter(node, x, name, split, scope).map(Some)
    }

    /// Turns a vector of scales into the shape `[n, 1, ..]` that puts it on the
    /// axis, for an `x` whose rank is known only at run time.
    fn align_axis(
        &mut self,
        label: &str,
        x: &str,
        scale: &str,
        split: &Split,
        scope: &mut Scope<'_>,
    ) -> String {
        let [dims, rank, ones, length, target, aligned] =
            std::array::from_fn(|_| self.names.fresh(label));
        let axis = self.names.fresh(label);
        scope.constants.insert(axis.clone(), tensor_from_i64(&axis, &[1], &[split.axis]));
        let mut fill = super::node("ConstantOfShape", label, &[&rank], &[&ones]);
        fill.attribute.push(AttributeProto {
            name: Some("value".to_owned()),
            r#type: Some(crate::proto::attribute_proto::AttributeType::Tensor as i32),
            t: Some(tensor_from_i64("", &[1], &[1])),
            ..AttributeProto::default()
        });
        scope.nodes.push(super::node("Shape", label, &[x], &[&dims]));
        scope.nodes.push(super::node("Shape", label, &[&dims], &[&rank]));
        scope.nodes.push(fill);
        // A single scale need not be on an axis that exists.
        let [last, real_axis] = std::array::from_fn(|_| self.names.fresh(label));
        let one = self.names.fresh(label);
        scope.constants.insert(one.clone(), tensor_from_i64(&one, &[1], &[1]));
        scope.nodes.push(super::node("Sub", label, &[&rank, &one], &[&last]));
        scope.nodes.push(super::node("Min", label, &[&axis, &last], &[&real_axis]));
        // A scalar has no length: `Size` is 1 for it and for a vector of one.
        let size = self.names.fresh(label);
        scope.nodes.push(super::node("Size", label, &[scale], &[&size]));
        scope.nodes.push(super::node("Reshape", label, &[&size, &one], &[&length]));
        scope.nodes.push(super::node(
            "ScatterElements",
            label,
            &[&ones, &real_axis, &length],
            &[&target],
        ));
        scope.nodes.push(super::node("Reshape", label, &[scale, &target], &[&aligned]));
        aligned
    }

    /// Gives a single divisor the size of `x`: the engine multiplies by the
    /// reciprocal of a divisor of one element, ONNX divides.
    fn spread_over(&mut self, x: &str, divisor: String, scope: &mut Scope<'_>) -> String {
        let Some(tensor) = scope.constant(&divisor) else {
            return divisor;
        };
        if tensor.dims.iter().product::<i64>() != 1 {
            return divisor;
        }
        let Ok(values) = data::to_f32(tensor, None) else {
            return divisor;
        };
        let value = values[0];
        // The reciprocal of a power of two is exact.
        if value.is_normal() && value.to_bits() & 0x007f_ffff == 0 {
            return divisor;
        }
        let last = scope.infos.get(x).and_then(|info| info.shape.as_ref()?.last()?.fixed());
        if let Some(last) = last.filter(|&last| (2..=1 << 16).contains(&last)) {
            let name = self.names.fresh(&divisor);
            scope
                .constants
                .insert(name.clone(), tensor_from_f32(&name, &[last], &vec![value; last]));
            return name;
        }
        let [dims, spread] = std::array::from_fn(|_| self.names.fresh(&divisor));
        scope.nodes.push(super::node("Shape", "", &[x], &[&dims]));
        scope.nodes.push(super::node("Expand", "", &[&divisor, &dims], &[&spread]));
        spread
    }

    /// Appends a node that works on the value of `chain`.
    fn step(
        &mut self,
        chain: &mut Chain<'_>,
        op_type: &str,
        others: &[&str],
        scope: &mut Scope<'_>,
    ) {
        let output = self.names.fresh(chain.label);
        let mut inputs = vec![chain.value.as_str()];
        inputs.extend_from_slice(others);
        scope.nodes.push(super::node(op_type, chain.label, &inputs, &[&output]));
        chain.value = output;
    }

    fn constant_f32(
        &mut self,
        base: &str,
        shape: &[usize],
        values: &[f32],
        scope: &mut Scope<'_>,
    ) -> String {
        let name = self.names.fresh(base);
        scope.constants.insert(name.clone(), tensor_from_f32(&name, shape, values));
        name
    }

    fn dtype_of(&self, name: &str, scope: &Scope<'_>) -> Option<DType> {
        let constant = scope.constant(name).and_then(|t| DType::from_onnx(t.data_type()).ok());
        constant
            .or_else(|| self.codes.get(name).copied())
            .or_else(|| scope.infos.get(name).and_then(|info| info.dtype))
    }

    fn rank_of(&self, name: &str, scope: &Scope<'_>) -> Option<usize> {
        let constant = scope.constant(name).map(|tensor| tensor.dims.len());
        constant.or_else(|| scope.infos.get(name)?.shape.as_ref().map(Vec::len))
    }

    fn axis_len(&self, name: &str, axis: usize, scope: &Scope<'_>) -> Option<usize> {
        if let Some(tensor) = scope.constant(name) {
            return tensor.dims.get(axis).map(|&dim| dim as usize);
        }
        scope.infos.get(name)?.shape.as_ref()?.get(axis)?.fixed()
    }
}

/// A value on its way through nodes that belong to one node of the file.
struct Chain<'a> {
    label: &'a str,
    value: String,
}

/// The node with only the attributes that its inputs do not already say and
/// with the default axis of the standard, which the engine's differs from.
fn plain_attributes(mut node: NodeProto, axis: i64, output: Option<DType>) -> NodeProto {
    node.domain = None;
    node.attribute = vec![attribute_int("axis", axis)];
    if let Some(dtype) = output
        && node.input_at(2).is_none()
    {
        node.attribute.push(attribute_int("output_dtype", i64::from(dtype.to_onnx())));
    }
    node
}

fn place_axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}

fn missing_operand(node: &NodeProto) -> Error {
    Error::new(ErrorKind::InvalidGraph, format!("{} lacks an operand or an output", describe(node)))
}
