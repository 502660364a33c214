//! The working copy computes what the file says, exactly.

use fastforward_onnx::ErrorKind;
use fastforward_onnx::dtype::DType;
use fastforward_onnx::engine::{Engine, EngineOptions, is_supported};
use fastforward_onnx::graph::{
    Constant, Dim, Model, ValueInfo, tensor_from_codes, tensor_from_f32,
};
use fastforward_onnx::lower::lower;
use fastforward_onnx::proto::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_int,
    attribute_ints, node,
};
use fastforward_onnx::qdq;
use fastforward_onnx::tensor::{Tensor, TensorData};

/// A graph from `x` to `outputs`.
fn model(
    x: (DType, Option<&[usize]>),
    nodes: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    outputs: &[&str],
) -> Model {
    let info =
        |name: &str, dtype, shape| ValueInfo { name: name.to_owned(), dtype, shape }.to_proto();
    let shape = x.1.map(|shape| shape.iter().map(|&n| Dim::Fixed(n)).collect());
    let domains = [("", 25), ("com.microsoft", 1)];
    let proto = ModelProto {
        ir_version: Some(13),
        opset_import: domains
            .map(|(domain, version)| OperatorSetIdProto {
                domain: Some(domain.to_owned()),
                version: Some(version),
            })
            .to_vec(),
        graph: Some(GraphProto {
            name: Some("test".to_owned()),
            node: nodes,
            initializer,
            input: vec![info("x", Some(x.0), shape)],
            output: outputs.iter().map(|name| info(name, None, None)).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    Model::from_proto(proto, None).unwrap()
}

fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions::default()).unwrap()
}

/// Values on and around every tie, the ends of the range, and beyond.
fn awkward(n: usize, scale: f32) -> Vec<f32> {
    let value = |i: usize| {
        let step = (i as f32 - n as f32 / 2.0) * 0.5;
        match i % 3 {
            0 => step * scale,
            1 => (step * scale).next_up(),
            _ => (step * scale).next_down(),
        }
    };
    (0..n).map(value).collect()
}

/// Quantizes and dequantizes `x` in a graph and by our arithmetic.
#[track_caller]
fn check_pair(
    dtype: DType,
    x_shape: &[usize],
    scale: &[f32],
    scale_shape: &[usize],
    attributes: &[(&str, i64)],
) {
    for zero_point in [0i64, 1, 3] {
        let (low, high) = dtype.int_range().unwrap();
        let codes = vec![zero_point.clamp(low, high); scale.len()];
        let x = awkward(x_shape.iter().product(), scale[0]);
        let with = |mut node: NodeProto| {
            node.attribute
                .extend(attributes.iter().map(|(name, value)| attribute_int(name, *value)));
            node
        };
        let quantize = with(node("QuantizeLinear", "q", &["x", "s", "z"], &["q"]));
        let dequantize = with(node("DequantizeLinear", "d", &["q", "s", "z"], &["y"]));
        let scale = tensor_from_f32("s", scale_shape, scale);
        let zero = tensor_from_codes("z", dtype, scale_shape, &codes).unwrap();
        let input = tensor_from_f32("x", x_shape, &x);
        let q = qdq::evaluate(&quantize, &[Some(&input), Some(&scale), Some(&zero)], None).unwrap();
        let y = qdq::evaluate(&dequantize, &[Some(&q), Some(&scale), Some(&zero)], None).unwrap();

        let x = Tensor::from_f32(x_shape.to_vec(), x).unwrap();
        // With and without a stated shape: the copy is another one.
        for stated in [Some(x_shape), None] {
            let model = model(
                (DType::F32, stated),
                vec![quantize.clone(), dequantize.clone()],
                vec![scale.clone(), zero.clone()],
                &["q", "y"],
            );
            let values = engine(&model).run(&[("x", &x)], &["q", "y"]).unwrap();
            let expected = [&q, &y].map(|tensor| Constant::of(tensor).to_tensor().unwrap());
            assert_eq!(values, expected, "{dtype}, zero point {zero_point}, stated {stated:?}");
        }
    }
}

const NARROW: [DType; 8] =
    [DType::I2, DType::U2, DType::I4, DType::U4, DType::I8, DType::U8, DType::I16, DType::U16];

#[test]
fn activations_of_every_integer_type_are_exact() {
    for dtype in NARROW {
        // 0.1 has no exact reciprocal, so that a product would differ.
        check_pair(dtype, &[600], &[0.1], &[], &[]);
        check_pair(dtype, &[2, 300], &[0.1], &[1], &[]);
        check_pair(dtype, &[4, 100, 3], &[0.3], &[], &[("axis", 1)]);
    }
}

#[test]
fn activations_per_axis_and_in_blocks_are_exact() {
    for dtype in NARROW {
        check_pair(dtype, &[2, 3, 50], &[0.1, 0.7, 3.0], &[3], &[]);
        check_pair(dtype, &[2, 50, 3], &[0.1, 0.7, 3.0], &[3], &[("axis", -1)]);
        check_pair(
            dtype,
            &[50, 4],
            &[0.1, 0.7, 3.0, 0.2],
            &[1, 4],
            &[("axis", 0), ("block_size", 64)],
        );
    }
    let scales: Vec<f32> = (1..=12).map(|i| i as f32 * 0.07).collect();
    check_pair(DType::I4, &[2, 12, 3], &scales, &[2, 2, 3], &[("axis", 1), ("block_size", 6)]);
}

#[test]
fn a_partial_last_block_needs_the_stated_length() {
    let blocked = |mut node: NodeProto| {
        node.attribute.extend([attribute_int("axis", 1), attribute_int("block_size", 4)]);
        node
    };
    let quantize = blocked(node("QuantizeLinear", "q", &["x", "s"], &["q"]));
    let model = model(
        (DType::F32, Some(&[2, 6])),
        vec![quantize],
        vec![tensor_from_f32("s", &[2, 2], &[0.1, 0.2, 0.3, 0.4])],
        &["q"],
    );
    let x = Tensor::from_f32(vec![2, 6], vec![1.0; 12]).unwrap();
    let values = engine(&model).run(&[("x", &x)], &["q"]).unwrap();
    assert_eq!(values[0].data(), &TensorData::U8(vec![10, 10, 10, 10, 5, 5, 3, 3, 3, 3, 2, 2]));
}

#[test]
fn infinities_saturate_and_nan_becomes_some_integer() {
    let nodes = vec![
        node("QuantizeLinear", "q", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", "d", &["q", "s", "z"], &["y"]),
    ];
    let constants = vec![
        tensor_from_f32("s", &[], &[0.5]),
        tensor_from_codes("z", DType::I16, &[], &[0]).unwrap(),
    ];
    let model = model((DType::F32, None), nodes, constants, &["y"]);
    let x = Tensor::from_f32(vec![3], vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).unwrap();
    let y = engine(&model).run(&[("x", &x)], &["y"]).unwrap()[0].to_f32();
    assert!(y[0].is_finite()); // Integers have no NaN.
    assert_eq!(y[1..], [32767.0 * 0.5, -32768.0 * 0.5]);
}

#[test]
fn quantized_weights_of_every_type_are_folded() {
    for dtype in NARROW {
        for (scale_shape, attributes) in [
            (vec![], vec![]),
            (vec![6], vec![("axis", 0)]),
            (vec![6, 2], vec![("axis", 1), ("block_size", 3)]),
        ] {
            let n_scales: usize = scale_shape.iter().product();
            let scales: Vec<f32> = (0..n_scales).map(|i| 0.1 + i as f32).collect();
            let (low, high) = dtype.int_range().unwrap();
            let codes: Vec<i64> =
                (0..24).map(|i| (low + i * 7 % (high - low + 1)).clamp(low, high)).collect();
            let mut dequantize = node("DequantizeLinear", "d", &["w", "s"], &["wf"]);
            dequantize
                .attribute
                .extend(attributes.iter().map(|(name, value)| attribute_int(name, *value)));
            let weight = tensor_from_codes("w", dtype, &[6, 4], &codes).unwrap();
            let scale = tensor_from_f32("s", &scale_shape, &scales);
            let folded = qdq::evaluate(&dequantize, &[Some(&weight), Some(&scale)], None).unwrap();
            let product = node("Mul", "m", &["x", "wf"], &["y"]);
            let model =
                model((DType::F32, None), vec![dequantize, product], vec![weight, scale], &["y"]);
            let lowered = lower(&model).unwrap();
            let graph = lowered.proto.graph.unwrap();
            assert_eq!(graph.node.len(), 1);
            assert_eq!(graph.initializer.iter().map(|t| t.name()).collect::<Vec<_>>(), ["wf"]);
            let x = Tensor::from_f32(vec![1], vec![1.0]).unwrap();
            let y = engine(&model).run(&[("x", &x)], &["y"]).unwrap();
            assert_eq!(y[0].to_f32(), Constant::of(&folded).to_f32().unwrap(), "{dtype}");
        }
    }
}

#[test]
fn a_weight_behind_a_float_pair_is_folded_too() {
    let mut nodes = vec![
        node("QuantizeLinear", "q", &["w", "s", "z"], &["wq"]),
        node("DequantizeLinear", "d", &["wq", "s", "z"], &["wf"]),
        node("Mul", "m", &["x", "wf"], &["y"]),
    ];
    nodes[0].domain = Some("com.microsoft".to_owned());
    nodes[1].domain = Some("com.microsoft".to_owned());
    let constants = vec![
        tensor_from_f32("w", &[3], &[0.26, -9.0, 0.74]),
        tensor_from_f32("s", &[], &[0.5]),
        tensor_from_codes("z", DType::I4, &[], &[0]).unwrap(),
    ];
    let model = model((DType::F32, None), nodes, constants, &["y"]);
    assert_eq!(lower(&model).unwrap().proto.graph.unwrap().node.len(), 1);
    let x = Tensor::from_f32(vec![1], vec![1.0]).unwrap();
    let y = engine(&model).run(&[("x", &x)], &["y"]).unwrap();
    assert_eq!(y[0].to_f32(), [0.5, -4.0, 0.5]);
}

#[test]
fn operators_that_move_elements_may_stand_between_a_pair() {
    let pool = {
        let mut pool = node("MaxPool", "p", &["q"], &["p"]);
        pool.attribute
            .extend([attribute_ints("kernel_shape", &[2, 2]), attribute_ints("strides", &[2, 2])]);
        pool
    };
    for dtype in [DType::U8, DType::I16, DType::U4] {
        let nodes = vec![
            node("QuantizeLinear", "q", &["x", "s", "z"], &["q"]),
            pool.clone(),
            node("DequantizeLinear", "d", &["p", "s", "z"], &["y"]),
        ];
        let constants = vec![
            tensor_from_f32("s", &[], &[0.1]),
            tensor_from_codes("z", dtype, &[], &[1]).unwrap(),
        ];
        let model = model((DType::F32, None), nodes, constants, &["p", "y"]);
        let x = Tensor::from_f32(vec![1, 1, 2, 2], vec![0.1, 0.31, -0.5, 0.2]).unwrap();
        let values = engine(&model).run(&[("x", &x)], &["p", "y"]).unwrap();
        assert_eq!(values[0].to_f32(), [4.0]);
        assert_eq!(values[1].to_f32(), [3.0 * 0.1]);
    }
}

#[test]
fn integer_operators_get_integers() {
    // The same 8-bit value goes to a `DequantizeLinear` and to `MatMulInteger`.
    let nodes = vec![
        node("QuantizeLinear", "q", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", "d", &["q", "s", "z"], &["y"]),
        node("MatMulInteger", "m", &["q", "w", "z"], &["i"]),
    ];
    let constants = vec![
        tensor_from_f32("s", &[], &[0.5]),
        tensor_from_codes("z", DType::U8, &[], &[10]).unwrap(),
        tensor_from_codes("w", DType::I8, &[2, 1], &[3, -2]).unwrap(),
    ];
    let model = model((DType::F32, None), nodes, constants, &["y", "i"]);
    let x = Tensor::from_f32(vec![1, 2], vec![1.0, -2.0]).unwrap();
    let values = engine(&model).run(&[("x", &x)], &["q", "y", "i"]).unwrap();
    assert_eq!(values[0].data(), &TensorData::U8(vec![12, 6]));
    assert_eq!(values[1].to_f32(), [1.0, -2.0]);
    assert_eq!(values[2].data(), &TensorData::I32(vec![2 * 3 + 4 * 2]));
}

/// Integers of `dtype`, spread over its range.
fn codes(dtype: DType, n: usize) -> Vec<i64> {
    let (low, high) = dtype.int_range().unwrap();
    (0..n as i64).map(|i| low + (i * i * 31 + i * 97) % (high - low + 1)).collect()
}

/// `MatMulInteger` of `[m, k]` and `[k, n]`; each column has its zero point.
#[track_caller]
fn check_matmul([m, k, n]: [usize; 3], dtype: DType, is_constant: bool) {
    let (a, b) = (codes(DType::U8, m * k), codes(dtype, k * n));
    let zero: Vec<i64> = codes(dtype, n);
    let mut expected = Vec::new();
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let product = |i: usize| (a[row * k + i] - 9) * (b[i * n + column] - zero[column]);
        expected.push((0..k).map(product).sum::<i64>() as i32);
    }
    let constants = vec![
        tensor_from_codes("az", DType::U8, &[], &[9i64]).unwrap(),
        tensor_from_codes("bz", dtype, &[n], &zero).unwrap(),
        tensor_from_codes("b", dtype, &[k, n], &b).unwrap(),
    ];
    let x = tensor_from_codes("x", DType::U8, &[m, k], &a).unwrap();
    let x = Constant::of(&x).to_tensor().unwrap();
    let b = Constant::of(&constants[2]).to_tensor().unwrap();
    let nodes = vec![node("MatMulInteger", "p", &["x", "b", "az", "bz"], &["y"])];
    let mut fed = vec![("x", &x)];
    let mut model = model((DType::U8, None), nodes, constants, &["y"]);
    if !is_constant {
        let info = ValueInfo { name: "b".to_owned(), dtype: Some(dtype), shape: None };
        model.graph_mut().input.push(info.to_proto());
        model.graph_mut().initializer.pop();
        fed.push(("b", &b));
    }
    let y = engine(&model).run(&fed, &["y"]).unwrap();
    assert_eq!(y[0], Tensor::new(vec![m, n], TensorData::I32(expected)).unwrap());
}

/// Sizes around the tiles of matrix kernels, and sums beyond what `float32` holds.
#[test]
fn integer_matrix_products_are_exact() {
    for dtype in [DType::U8, DType::I8] {
        for size in [[1, 7, 9], [5, 64, 3], [33, 130, 65], [2, 257, 31], [1, 3000, 4]] {
            check_matmul(size, dtype, true);
            check_matmul(size, dtype, false);
        }
        check_matmul([1, 40_000, 2], dtype, true);
    }
}

/// `ConvInteger` of a `[1, channels, size, size]` image, padded by one.
#[track_caller]
fn check_conv(channels: usize, size: usize, group: usize, dtype: DType) {
    let (kernel, outs) = (3, 4);
    let per_group = channels / group;
    let (x, w) = (codes(DType::U8, channels * size * size), codes(dtype, outs * per_group * 9));
    let mut expected = Vec::new();
    for (out, place) in (0..outs).flat_map(|out| (0..size * size).map(move |place| (out, place))) {
        let (row, column) = (place / size, place % size);
        let mut sum = 0;
        for i in 0..per_group * kernel * kernel {
            let (channel, r, c) = (i / 9, row + i / 3 % 3, column + i % 3);
            if (1..=size).contains(&r) && (1..=size).contains(&c) {
                let channel = out / (outs / group) * per_group + channel;
                let pixel = x[(channel * size + r - 1) * size + c - 1];
                sum += (pixel - 7) * (w[out * per_group * 9 + i] - 1);
            }
        }
        expected.push(sum as i32);
    }
    let mut conv = node("ConvInteger", "c", &["x", "w", "xz", "wz"], &["y"]);
    conv.attribute.extend([attribute_ints("pads", &[1; 4]), attribute_int("group", group as i64)]);
    let constants = vec![
        tensor_from_codes("w", dtype, &[outs, per_group, 3, 3], &w).unwrap(),
        tensor_from_codes("xz", DType::U8, &[], &[7i64]).unwrap(),
        tensor_from_codes("wz", dtype, &[], &[1i64]).unwrap(),
    ];
    let model = model((DType::U8, None), vec![conv], constants, &["y"]);
    let x = tensor_from_codes("x", DType::U8, &[1, channels, size, size], &x).unwrap();
    let x = Constant::of(&x).to_tensor().unwrap();
    let y = engine(&model).run(&[("x", &x)], &["y"]).unwrap();
    assert_eq!(y[0].data(), &TensorData::I32(expected));
}

#[test]
fn integer_convolutions_are_exact() {
    for dtype in [DType::U8, DType::I8] {
        check_conv(1, 6, 1, dtype);
        check_conv(4, 7, 1, dtype);
        check_conv(4, 5, 4, dtype);
        check_conv(8, 5, 2, dtype);
        check_conv(600, 3, 1, dtype);
    }
}

#[test]
fn what_floats_cannot_stand_for_is_refused_by_name() {
    let nodes = vec![
        node("QuantizeLinear", "q", &["x", "s", "z"], &["q"]),
        node("Add", "a", &["q", "q"], &["y"]),
    ];
    let constants = vec![
        tensor_from_f32("s", &[], &[0.5]),
        tensor_from_codes("z", DType::I16, &[], &[0]).unwrap(),
    ];
    let error = lower(&model((DType::F32, None), nodes, constants, &["y"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.to_string(),
        "operator `Add` (node `a`) takes `q` of type int16, which the execution engine lacks"
    );

    let indices = tensor_from_codes("k", DType::U32, &[1], &[0]).unwrap();
    let nodes = vec![node("Gather", "g", &["x", "k"], &["y"])];
    let error = lower(&model((DType::F32, None), nodes, vec![indices], &["y"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "operator `Gather` (node `g`) takes constant `k` of type uint32, which the execution engine lacks"
    );
}

#[test]
fn half_precision_graphs_are_computed_in_single_precision() {
    let half = TensorProto {
        name: Some("w".to_owned()),
        data_type: Some(DType::BF16.to_onnx()),
        dims: vec![2],
        raw_data: Some(vec![0x80, 0x3f, 0x40, 0xc0].into()), // 1, -3
        ..TensorProto::default()
    };
    let mut cast = node("Cast", "c", &["x"], &["c"]);
    cast.attribute.push(attribute_int("to", i64::from(DType::F16.to_onnx())));
    let nodes = vec![cast, node("Mul", "m", &["c", "w"], &["y"])];
    let model = model((DType::F16, None), nodes, vec![half], &["y"]);
    let x = Tensor::from_f32(vec![2], vec![1.0001, 2.0]).unwrap();
    let y = engine(&model).run(&[("x", &x)], &["y"]).unwrap();
    assert_eq!(y[0].to_f32(), [1.0001, -6.0]);
}

#[test]
fn the_list_of_operators_is_the_engine_s() {
    // Whether a graph with only this operator is refused because of its name.
    let is_unknown = |domain: &str, op_type: &str| {
        let mut only = node(op_type, "n", &["x"], &["y"]);
        only.domain = Some(domain.to_owned());
        let proto = model((DType::F32, None), vec![only], vec![], &["y"]).proto().encode_to_vec();
        let mut options = rten::ModelOptions::with_all_ops();
        match options.enable_optimization(false).load(proto) {
            Ok(_) => false,
            Err(error) => {
                let text = error.to_string();
                text.contains("not supported or not enabled") || text.contains("without the")
            }
        }
    };
    for (domain, op_types) in [
        ("", include_str!("../src/engine/operators/standard.txt")),
        ("com.microsoft", include_str!("../src/engine/operators/microsoft.txt")),
    ] {
        for op_type in op_types.lines() {
            // `Constant` is no operator to the engine but a value.
            if op_type != "Constant" {
                assert!(!is_unknown(domain, op_type), "{op_type}");
            }
            assert!(is_supported(domain, op_type));
        }
    }
    for op_type in
        ["QLinearConv", "DeformConv", "Dropout", "STFT", "Bernoulli", "Einsumm", "NonZeros"]
    {
        assert!(is_unknown("", op_type), "{op_type}");
        assert!(!is_supported("", op_type));
    }
}
