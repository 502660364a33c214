//! `ConvInteger` and `MatMulInteger` in floats, exactly.

use super::*;

/// Integers up to this magnitude, and their sums, are exact in `float32`.
const MAX_EXACT: i64 = 1 << 24;
/// The largest difference of an 8-bit value and its zero point.
const MAX_SHIFTED: i64 = 255;

impl Lowering<'_> {
    /// The engine's own integer products are wrong for some sizes (kernels of
    /// more than one position, matrices beyond one tile), so they become float
    /// products whose sums stay below 2^24: one where that holds for the
    /// weight, otherwise several of its digits in a smaller base, added up as
    /// integers. A computed second operand is split in two, which is exact for
    /// up to 4,111 products in a sum.
    pub(super) fn integer_product(&mut self, node: NodeProto, scope: &mut Scope<'_>) -> Result<()> {
        let (Some(x), Some(w), Some(output)) =
            (node.input_at(0), node.input_at(1), node.output.first())
        else {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("{} lacks an operand or an output", describe(&node)),
            ));
        };
        let is_conv = node.op_type() == "ConvInteger";
        let label = node.label().to_owned();
        // The zero points of a matrix's rows stand in a column.
        let has_one_zero = node.input_at(2).is_none_or(|name| is_single(name, scope));
        let rows = (!is_conv && !has_one_zero).then_some([-1, 1].as_slice());
        let image = self.shifted(&label, x, node.input_at(2), rows, scope);
        let parts = match self.constant_parts(&node, w, scope)? {
            Some(parts) => parts,
            None => self.computed_parts(&node, w, scope),
        };

        let n_parts = parts.len();
        let mut sum: Option<String> = None;
        for (position, (factor, weight)) in parts.into_iter().enumerate() {
            let [float, integer] = std::array::from_fn(|_| self.names.fresh(&label));
            let op_type = if is_conv { "Conv" } else { "MatMul" };
            let mut product = proto::node(op_type, &label, &[&image, &weight], &[&float]);
            product.attribute = node.attribute.clone();
            if is_conv {
                state_kernel_shape(&mut product, w, scope);
            }
            scope.nodes.push(product);
            if n_parts == 1 {
                scope.nodes.push(cast(&label, &float, output, DType::I32));
                return Ok(());
            }
            scope.nodes.push(cast(&label, &float, &integer, DType::I32));
            let [factor_name, scaled] = std::array::from_fn(|_| self.names.fresh(&label));
            let factor = data::raw_tensor(
                &factor_name,
                DType::I32,
                &[],
                factor.to_le_bytes().to_vec().into(),
            );
            scope.constants.insert(factor_name.clone(), factor);
            scope.nodes.push(proto::node("Mul", &label, &[&integer, &factor_name], &[&scaled]));
            sum = Some(match sum {
                None => scaled,
                Some(sum) => {
                    let is_last = position + 1 == n_parts;
                    let total = if is_last { output.clone() } else { self.names.fresh(&label) };
                    scope.nodes.push(proto::node("Add", &label, &[&sum, &scaled], &[&total]));
                    total
                }
            });
        }
        Ok(())
    }

    /// `value - zero_point` as floats; a zero point for each row is reshaped.
    fn shifted(
        &mut self,
        label: &str,
        value: &str,
        zero_point: Option<&str>,
        shape: Option<&[i64]>,
        scope: &mut Scope<'_>,
    ) -> String {
        let float = self.names.fresh(label);
        scope.nodes.push(cast(label, value, &float, DType::F32));
        let Some(zero_point) = zero_point else { return float };
        let [zero, aligned, target, shifted] = std::array::from_fn(|_| self.names.fresh(label));
        scope.nodes.push(cast(label, zero_point, &zero, DType::F32));
        let subtrahend = match shape {
            None => &zero,
            Some(shape) => {
                scope
                    .constants
                    .insert(target.clone(), tensor_from_i64(&target, &[shape.len()], shape));
                scope.nodes.push(proto::node("Reshape", label, &[&zero, &target], &[&aligned]));
                &aligned
            }
        };
        scope.nodes.push(proto::node("Sub", label, &[&float, subtrahend], &[&shifted]));
        shifted
    }

    /// The low four bits and the rest of a weight that is known only at run
    /// time; the weight itself where its shape promises short sums.
    fn computed_parts(
        &mut self,
        node: &NodeProto,
        name: &str,
        scope: &mut Scope<'_>,
    ) -> Vec<(i32, String)> {
        let label = node.label();
        let shape = scope.infos.get(name).and_then(ValueInfo::fixed_shape);
        let n_products = shape.and_then(|shape| match node.op_type() {
            "ConvInteger" => Some(shape.iter().skip(1).product()),
            _ => shape.iter().rev().nth(1).copied(),
        });
        // The zero points of a convolution's channels stand on its first axis.
        let rank = scope.infos.get(name).and_then(|info| info.shape.as_ref()).map_or(4, Vec::len);
        let mut channels = vec![1; rank.max(1)];
        channels[0] = -1;
        let is_conv = node.op_type() == "ConvInteger";
        let has_one_zero = node.input_at(3).is_none_or(|name| is_single(name, scope));
        let aligned = (is_conv && !has_one_zero).then_some(channels.as_slice());
        let weight = self.shifted(label, name, node.input_at(3), aligned, scope);
        if n_products.is_some_and(|n: usize| (n as i64) * MAX_SHIFTED * MAX_SHIFTED < MAX_EXACT) {
            return vec![(1, weight)];
        }
        let [sixteenth, sixteen] = [1.0 / 16.0, 16.0].map(|factor| {
            let name = self.names.fresh(label);
            scope.constants.insert(name.clone(), tensor_from_f32(&name, &[], &[factor]));
            name
        });
        let [shrunk, high, back, low] = std::array::from_fn(|_| self.names.fresh(label));
        for (op_type, inputs, output) in [
            ("Mul", [&weight, &sixteenth].as_slice(), &shrunk),
            ("Floor", &[&shrunk], &high),
            ("Mul", &[&high, &sixteen], &back),
            ("Sub", &[&weight, &back], &low),
        ] {
            let inputs: Vec<&str> = inputs.iter().map(|name| name.as_str()).collect();
            scope.nodes.push(proto::node(op_type, label, &inputs, &[output]));
        }
        vec![(1, low), (16, high)]
    }

    /// A constant weight minus its zero point, in parts whose sums are exact,
    /// each with the factor that it counts for. `None` for a computed weight.
    fn constant_parts(
        &mut self,
        node: &NodeProto,
        name: &str,
        scope: &mut Scope<'_>,
    ) -> Result<Option<Vec<(i32, String)>>> {
        let place = |error: Error| error.within(describe(node));
        let folder = self.model.folder();
        let zero_point = match node.input_at(3) {
            None => vec![0],
            Some(zero_point) => match scope.constant(zero_point) {
                Some(tensor) => data::to_i64(tensor, folder).map_err(place)?,
                None => return Ok(None),
            },
        };
        let Some(tensor) = scope.constant(name).cloned() else {
            return Ok(None);
        };
        let (_, shape) = data::dtype_and_shape(&tensor).map_err(place)?;
        let mut values = data::to_i64(&tensor, folder).map_err(place)?;
        // The output that an element adds to, and how many outputs there are.
        let (n_outputs, stride) = match node.op_type() {
            "ConvInteger" => {
                (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>())
            }
            _ => (shape.last().copied().unwrap_or(1), 1),
        };
        let output_of = |position: usize| position / stride.max(1) % n_outputs.max(1);
        for (position, value) in values.iter_mut().enumerate() {
            let zero = zero_point.get(output_of(position)).or(zero_point.first());
            *value -= zero.copied().unwrap_or(0);
        }
        let is_exact = |values: &[i64]| {
            let mut sums = vec![0; n_outputs];
            for (position, value) in values.iter().enumerate() {
                sums[output_of(position)] += value.abs() * MAX_SHIFTED;
            }
            sums.into_iter().all(|sum| sum < MAX_EXACT)
        };
        // Digits with the sign of the number; 512 is beyond every difference.
        for base in [512, 16, 4, 2] {
            let mut parts: Vec<(i32, Vec<i64>)> = Vec::new();
            let (mut rest, mut factor) = (values.clone(), 1);
            while parts.is_empty() || rest.iter().any(|&value| value != 0) {
                parts.push((factor, rest.iter().map(|value| value % i64::from(base)).collect()));
                rest.iter_mut().for_each(|value| *value /= i64::from(base));
                factor *= base;
            }
            if !parts.iter().all(|(_, part)| is_exact(part)) {
                continue;
            }
            let mut named = Vec::with_capacity(parts.len());
            for (factor, part) in parts {
                let name = self.names.fresh(node.label());
                let part: Vec<f32> = part.into_iter().map(|value| value as f32).collect();
                scope.constants.insert(name.clone(), tensor_from_f32(&name, &shape, &part));
                named.push((factor, name));
            }
            return Ok(Some(named));
        }
        Err(place(Error::new(
            ErrorKind::Unsupported,
            format!("the weight `{name}` has too many products in a sum to be exact"),
        )))
    }
}

/// Whether the value is known to have one element.
fn is_single(name: &str, scope: &Scope<'_>) -> bool {
    match scope.constant(name) {
        Some(tensor) => tensor.dims.iter().product::<i64>() == 1,
        None => {
            let shape = scope.infos.get(name).and_then(ValueInfo::fixed_shape);
            shape.is_some_and(|shape| shape.iter().product::<usize>() == 1)
        }
    }
}

fn cast(label: &str, from: &str, to: &str, dtype: DType) -> NodeProto {
    let mut cast = proto::node("Cast", label, &[from], &[to]);
    cast.attribute.push(attribute_int("to", i64::from(dtype.to_onnx())));
    cast
}
