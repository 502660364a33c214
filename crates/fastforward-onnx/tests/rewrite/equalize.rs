//! Cross-layer equalization on small graphs.

use fastforward_core::algorithms::ScaleRounding;
use fastforward_core::algorithms::equalization::EqualizationOptions;
use fastforward_onnx::ErrorKind;
use fastforward_onnx::engine::{BatchInput, Engine, EngineOptions};
use fastforward_onnx::graph::{Model, tensor_from_f32, tensor_from_i64};
use fastforward_onnx::proto::{NodeProto, TensorProto, attribute_float, node};
use fastforward_onnx::rewrite::{EqualizeOptions, EqualizeReport, Relu6, equalize};
use fastforward_onnx::shapes::ShapeTable;
use fastforward_onnx::tensor::Tensor;

use crate::support::{bits, graph, graph_with, numbers, output, with, with_ints};

/// Every factor is used, whatever the biases.
fn options() -> EqualizeOptions {
    EqualizeOptions { bound_biases: false, ..EqualizeOptions::default() }
}

/// Equalizes with powers of two: the same floats, and channels that lie closer together at each of `n_joints`.
#[track_caller]
fn check(mut model: Model, n_joints: usize, options: &EqualizeOptions) -> (Model, EqualizeReport) {
    let before = output(&model);
    let report = equalize(&mut model, options).unwrap();
    model.check().unwrap();
    let joints: Vec<_> = report.chains.iter().flat_map(|chain| &chain.joints).collect();
    assert_eq!(joints.len(), n_joints, "{report:?}");
    for joint in joints {
        assert!(joint.max_scale > 1.0 || joint.min_scale < 1.0, "{joint}");
        // A layer between two others may pay for what both gain.
        let spread = joint.spread;
        let before = spread.producer_before * spread.consumer_before;
        let after = spread.producer_after * spread.consumer_after;
        assert!(n_joints > 1 || after < before, "{joint}");
    }
    let after = output(&model);
    assert!(before.iter().any(|&value| value != 0.0));
    assert_eq!(bits(&before), bits(&after));
    (model, report)
}

#[track_caller]
fn check_kept(mut model: Model, layer: &str, reason: &str) {
    let before = model.to_bytes();
    let report = equalize(&mut model, &options()).unwrap();
    let kept = report.kept.iter().find(|kept| kept.layer == layer);
    assert_eq!(kept.map(|kept| kept.reason.as_str()), Some(reason), "{report:?}");
    assert!(report.chains.is_empty());
    assert!(model.to_bytes() == before);
}

/// Two convolutions with `between` in the middle, which reads `a` and makes `b`.
fn convolutions(between: Vec<NodeProto>) -> Model {
    convolutions_with(between, Vec::new())
}

fn convolutions_with(between: Vec<NodeProto>, constants: Vec<TensorProto>) -> Model {
    let last = if between.is_empty() { "a" } else { "b" };
    let mut nodes = vec![node("Conv", "c1", &["x", "w1", "b1"], &["a"])];
    nodes.extend(between);
    nodes.push(node("Conv", "c2", &[last, "w2", "b2"], &["y"]));
    let weights: [(&str, &[usize]); 4] =
        [("w1", &[6, 3, 3, 3]), ("b1", &[6]), ("w2", &[4, 6, 2, 2]), ("b2", &[4])];
    graph_with(&[2, 3, 9, 9], nodes, &weights, constants)
}

fn float(mut node: NodeProto, name: &str, value: f32) -> NodeProto {
    node.attribute.push(attribute_float(name, value));
    node
}

#[test]
fn what_keeps_a_factor_per_channel_is_passed() {
    let one = |op: &str| vec![node(op, "between", &["a"], &["b"])];
    check(convolutions(vec![]), 1, &options());
    for op in ["Relu", "LeakyRelu", "Identity", "Abs", "Neg", "Dropout", "GlobalMaxPool"] {
        let mut model = convolutions(one(op));
        if op == "GlobalMaxPool" {
            model.set_constant(tensor_from_f32("w2", &[4, 6, 1, 1], &numbers(3, 24)));
        }
        check(model, 1, &options());
    }
    for op in ["MaxPool", "AveragePool"] {
        let pool = with_ints(node(op, "between", &["a"], &["b"]), "kernel_shape", &[2, 2]);
        check(convolutions(vec![with_ints(pool, "strides", &[1, 1])]), 1, &options());
    }
    let model = convolutions_with(
        vec![node("PRelu", "between", &["a", "slope"], &["b"])],
        vec![tensor_from_f32("slope", &[6, 1, 1], &numbers(4, 6))],
    );
    check(model, 1, &options());

    let model = convolutions_with(
        vec![node("Pad", "between", &["a", "pads"], &["b"])],
        vec![tensor_from_i64("pads", &[8], &[0, 0, 1, 2, 0, 0, 0, 1])],
    );
    check(model, 1, &options());

    let open = convolutions_with(
        vec![node("Clip", "between", &["a", "low"], &["b"])],
        vec![tensor_from_f32("low", &[], &[0.0])],
    );
    check(open, 1, &options());
}

#[test]
fn constants_on_the_way_go_along() {
    let nodes = vec![
        node("Add", "add", &["shift", "a"], &["added"]),
        node("Mul", "mul", &["added", "factor"], &["multiplied"]),
        node("Sub", "sub", &["shift", "multiplied"], &["subtracted"]),
        node("Relu", "relu", &["subtracted"], &["b"]),
    ];
    let model = convolutions_with(
        nodes,
        vec![
            tensor_from_f32("shift", &[6, 1, 1], &numbers(5, 6)),
            tensor_from_f32("factor", &[1, 6, 1, 1], &numbers(6, 6)),
        ],
    );
    let (model, _) = check(model, 1, &options());
    // Both readers had the same constant; each has its own now.
    let shifts: Vec<&str> = model
        .graph()
        .node
        .iter()
        .flat_map(|n| &n.input)
        .map(String::as_str)
        .filter(|n| n.starts_with("shift"))
        .collect();
    assert_eq!(shifts.len(), 2);
}

#[test]
fn grouped_and_depthwise_convolutions_are_equalized_as_one_chain() {
    let nodes = vec![
        node("Conv", "c1", &["x", "w1", "b1"], &["a"]),
        node("Relu", "r1", &["a"], &["b"]),
        with(node("Conv", "depthwise", &["b", "w2", "b2"], &["c"]), "group", 6),
        node("Relu", "r2", &["c"], &["d"]),
        with(node("Conv", "grouped", &["d", "w3"], &["e"]), "group", 3),
        with(node("ConvTranspose", "up", &["e", "w4"], &["f"]), "group", 3),
        node("Conv", "last", &["f", "w5"], &["y"]),
    ];
    let weights: [(&str, &[usize]); 7] = [
        ("w1", &[6, 3, 3, 3]),
        ("b1", &[6]),
        ("w2", &[12, 1, 3, 3]),
        ("b2", &[12]),
        ("w3", &[9, 4, 1, 1]),
        ("w4", &[9, 2, 2, 2]),
        ("w5", &[2, 6, 1, 1]),
    ];
    let model = graph(&[1, 3, 9, 9], nodes, &weights);
    let (_, report) = check(model, 4, &options());
    assert_eq!(report.chains.len(), 1);
    assert_eq!(report.chains[0].layers, ["c1", "depthwise", "grouped", "up", "last"]);
    assert!(report.chains[0].converged);
    assert_eq!(report.kept.len(), 1);
}

#[test]
fn matrix_products_and_flattened_maps() {
    for op in ["Flatten", "Reshape"] {
        let mut gemm = with(node("Gemm", "g", &["b", "w2", "b2"], &["g"]), "transB", 1);
        gemm.attribute.push(attribute_float("alpha", 0.5));
        let inputs: &[&str] = if op == "Reshape" { &["a", "shape"] } else { &["a"] };
        let nodes = vec![
            node("Conv", "c1", &["x", "w1", "b1"], &["a"]),
            node(op, "flat", inputs, &["b"]),
            gemm,
            node("LeakyRelu", "r", &["g"], &["r"]),
            node("MatMul", "m", &["r", "w3"], &["m"]),
            node("Add", "add", &["b3", "m"], &["s"]),
            node("MatMul", "last", &["s", "w4"], &["y"]),
        ];
        let weights: [(&str, &[usize]); 7] = [
            ("w1", &[6, 3, 2, 2]),
            ("b1", &[6]),
            ("w2", &[5, 54]),
            ("b2", &[5]),
            ("w3", &[5, 7]),
            ("b3", &[7]),
            ("w4", &[7, 2]),
        ];
        let shape = tensor_from_i64("shape", &[2], &[-1, 54]);
        let model = graph_with(&[2, 3, 4, 4], nodes, &weights, vec![shape]);
        // What a Reshape makes of channels needs shapes; a product of matrices of any rank its rank for nothing.
        let engine = Engine::new(&model, &EngineOptions::default()).unwrap();
        let x = Tensor::from_f32(vec![2, 3, 4, 4], numbers(1, 96)).unwrap();
        let input = BatchInput { name: "x", tensor: &x, shared: false };
        let shapes = ShapeTable::recorded(&model, &engine, &[input]).unwrap();
        check(model, 3, &EqualizeOptions { shapes, ..options() });
    }
}

#[test]
fn a_scalar_bias_becomes_one_per_channel() {
    let nodes = vec![
        node("Gemm", "g", &["x", "w1", "b1"], &["a"]),
        node("Gemm", "h", &["a", "w2", "b1"], &["y"]),
    ];
    let model = graph(&[2, 3], nodes, &[("w1", &[3, 4]), ("w2", &[4, 2]), ("b1", &[1])]);
    let single = model.constant("b1").unwrap().to_f32().unwrap();
    let (model, _) = check(model, 1, &options());
    assert_eq!(model.graph().node[0].input[2], "b1_1");
    assert_eq!(model.constant("b1_1").unwrap().info().unwrap().shape, [4]);
    assert_eq!(model.constant("b1").unwrap().to_f32().unwrap(), single); // The other reader's.
}

#[test]
fn a_clip_is_kept_or_gets_bounds_or_goes() {
    let clipped = || {
        convolutions_with(
            vec![node("Clip", "clip", &["a", "low", "high"], &["b"])],
            vec![tensor_from_f32("low", &[], &[0.0]), tensor_from_f32("high", &[], &[0.25])],
        )
    };
    check_kept(
        clipped(),
        "c1",
        "`clip` clips all channels at 0.25; `relu6` can make it a bound per channel, or a Relu",
    );

    let bounds = EqualizeOptions { relu6: Relu6::PerChannel, ..options() };
    let (model, report) = check(clipped(), 1, &bounds);
    let ops: Vec<&str> = model.graph().node.iter().map(|node| node.op_type()).collect();
    assert_eq!(ops, ["Conv", "Relu", "Min", "Conv"]);
    assert!(model.constant("high").is_none() && model.constant("low").is_none());
    assert_eq!(model.constant("b_bound").unwrap().info().unwrap().shape, [6, 1, 1]);
    assert_eq!((report.clips.len(), report.clips[0].bound), (1, 0.25));

    // As a Relu it is another function, here: some values were clipped.
    let mut model = clipped();
    let before = output(&model);
    let relu = EqualizeOptions { relu6: Relu6::Relu, ..options() };
    equalize(&mut model, &relu).unwrap();
    let ops: Vec<&str> = model.graph().node.iter().map(|node| node.op_type()).collect();
    assert_eq!(ops, ["Conv", "Relu", "Conv"]);
    assert_ne!(bits(&before), bits(&output(&model)));
    let open = convolutions(vec![node("Relu", "clip", &["a"], &["b"])]);
    assert_eq!(bits(&output(&open)), bits(&output(&model)));
}

#[test]
fn old_files_state_bounds_and_pads_as_attributes() {
    let mut clip = float(node("Clip", "clip", &["a"], &["c"]), "min", 0.0);
    clip.attribute.push(attribute_float("max", 0.5));
    let pad = with_ints(node("Pad", "pad", &["c"], &["b"]), "pads", &[0, 0, 1, 1, 0, 0, 1, 1]);
    let mut model = convolutions(vec![clip, pad]);
    model.set_opset("", 9);
    let bounds = EqualizeOptions { relu6: Relu6::PerChannel, ..options() };
    let report = equalize(&mut model, &bounds).unwrap();
    assert_eq!(report.chains.len(), 1, "{report:?}");
    assert_eq!(model.graph().node[1].attribute, []);
}

#[test]
fn what_cannot_be_equalized_stays_with_a_reason() {
    let one = |op: &str| vec![node(op, "between", &["a"], &["b"])];
    for op in ["Sigmoid", "Tanh", "HardSwish"] {
        let reason = format!("`between` ({op}) does not keep a factor per channel");
        check_kept(convolutions(one(op)), "c1", &reason);
    }

    let mut twice = convolutions(one("Relu"));
    twice.graph_mut().node.push(node("Relu", "r", &["b"], &["z"]));
    check_kept(twice, "c1", "its result `b` is read 2 times");

    let mut returned = convolutions(one("Relu"));
    let mut other = returned.graph().output[0].clone();
    other.name = Some("b".into());
    returned.graph_mut().output.push(other);
    check_kept(returned, "c1", "its result `b` is returned by the graph");

    let mut shared = convolutions(one("Relu"));
    shared.graph_mut().node.push(node("Conv", "c3", &["x", "w1"], &["z"]));
    check_kept(shared, "c1", "the weight `w1` is used elsewhere too");

    let mut padded = convolutions_with(
        vec![node("Pad", "between", &["a", "pads", "value"], &["b"])],
        vec![
            tensor_from_i64("pads", &[8], &[0, 0, 1, 1, 0, 0, 1, 1]),
            tensor_from_f32("value", &[], &[1.0]),
        ],
    );
    check_kept(padded.clone(), "c1", "`between` (Pad) pads with another value than 0");
    padded.set_constant(tensor_from_f32("value", &[], &[0.0]));
    padded.set_constant(tensor_from_i64("pads", &[8], &[0, 1, 1, 1, 0, 0, 1, 1]));
    check_kept(padded, "c1", "`between` (Pad) pads the axis of channels");

    let mut computed = convolutions(vec![node("Add", "between", &["a", "x"], &["b"])]);
    computed.set_constant(tensor_from_f32("w1", &[3, 3, 1, 1], &numbers(8, 9)));
    check_kept(computed, "c1", "`between` (Add) reads `x`, which is not constant");

    let single = convolutions_with(
        vec![node("Add", "between", &["a", "one"], &["b"])],
        vec![tensor_from_f32("one", &[], &[1.0])],
    );
    check_kept(
        single,
        "c1",
        "`between` (Add) adds `one`, which is not one number for each channel",
    );

    let low = convolutions_with(
        vec![node("Clip", "between", &["a", "low"], &["b"])],
        vec![tensor_from_f32("low", &[], &[-1.0])],
    );
    check_kept(low, "c1", "`between` (Clip) clips at -1 and inf");

    let mut infinite = convolutions(vec![]);
    infinite.set_constant(tensor_from_f32("w2", &[4, 6, 1, 1], &[f32::INFINITY; 24]));
    check_kept(infinite, "c1", "the weight `w2` is not finite");

    let flat = vec![
        node("Conv", "c", &["x", "w1"], &["a"]),
        node("Reshape", "flat", &["a", "shape"], &["b"]),
        node("MatMul", "m", &["b", "w2"], &["y"]),
    ];
    let weights: [(&str, &[usize]); 2] = [("w1", &[6, 3, 1, 1]), ("w2", &[96, 2])];
    let shape = tensor_from_i64("shape", &[2], &[-1, 96]);
    let flat = graph_with(&[1, 3, 4, 4], flat, &weights, vec![shape]);
    check_kept(
        flat,
        "c",
        "`flat` (Reshape) changes a shape that is unknown (give the shapes of activations)",
    );

    let product = vec![
        node("MatMul", "m1", &["x", "w1"], &["a"]),
        node("MatMul", "m2", &["w2", "a"], &["y"]),
    ];
    let product = graph(&[4, 3], product, &[("w1", &[3, 4]), ("w2", &[2, 4])]);
    check_kept(product.clone(), "m1", "`m2` reads its result as a weight or bias");
    check_kept(product, "m2", "its weight `w2` is the left operand");

    // A channel axis that is not the one the next layer reads.
    let turned =
        vec![node("Conv", "c", &["x", "w1"], &["a"]), node("MatMul", "m", &["a", "w2"], &["y"])];
    let turned = graph(&[1, 3, 6, 6], turned, &[("w1", &[6, 3, 1, 1]), ("w2", &[6, 2])]);
    check_kept(turned, "c", "`m` does not read channels as channels");
}

#[test]
fn a_transposed_value_takes_its_channels_along() {
    let nodes = vec![
        node("Conv", "c", &["x", "w1"], &["a"]),
        with_ints(node("Transpose", "t", &["a"], &["b"]), "perm", &[0, 2, 3, 1]),
        node("MatMul", "m", &["b", "w2"], &["y"]),
    ];
    let model = graph(&[1, 3, 5, 5], nodes, &[("w1", &[6, 3, 1, 1]), ("w2", &[6, 2])]);
    check(model, 1, &options());

    let nodes = vec![
        node("Conv", "c", &["x", "w1"], &["a"]),
        with(with_ints(node("ReduceMean", "r", &["a"], &["b"]), "axes", &[-1, 2]), "keepdims", 0),
        node("Gemm", "g", &["b", "w2"], &["y"]),
    ];
    let model = graph(&[1, 3, 5, 5], nodes, &[("w1", &[6, 3, 1, 1]), ("w2", &[6, 2])]);
    check(model, 1, &options());
}

#[test]
fn factors_as_they_are_round_each_parameter_once() {
    let mut model = convolutions(vec![node("Relu", "r", &["a"], &["b"])]);
    let (before, bound) = (output(&model), magnitude_bound(&model));
    let equalization =
        EqualizationOptions { rounding: ScaleRounding::Unrounded, ..Default::default() };
    let report = equalize(&mut model, &EqualizeOptions { equalization, ..options() }).unwrap();
    let spread = report.chains[0].joints[0].spread;
    let off = spread.producer_after / spread.consumer_after;
    assert!((off - 1.0).abs() < 1e-3, "{off}"); // The ranges meet.
    for ((before, after), bound) in before.iter().zip(output(&model)).zip(bound) {
        // Two roundings of parameters on each side, and the sums of 27 and 24 products.
        let allowed = bound * 2f32.powi(-24) * (4.0 + 27.0 + 24.0 + 4.0);
        assert!((before - after).abs() <= allowed, "{before} {after} {allowed}");
    }
}

/// The graph of two convolutions with all of its numbers made positive: the sum of magnitudes behind each output.
fn magnitude_bound(model: &Model) -> Vec<f32> {
    let mut positive = model.clone();
    for name in ["w1", "b1", "w2", "b2"] {
        let constant = model.constant(name).unwrap();
        let values: Vec<f32> = constant.to_f32().unwrap().iter().map(|v| v.abs()).collect();
        let shape = constant.info().unwrap().shape;
        positive.set_constant(tensor_from_f32(name, &shape, &values));
    }
    let shape = model.inputs()[0].fixed_shape().unwrap();
    let x = vec![1.0; shape.iter().product()];
    let x = Tensor::from_f32(shape, x).unwrap();
    let engine = Engine::new(&positive, &EngineOptions::default()).unwrap();
    engine.run(&[("x", &x)], &["y"]).unwrap()[0].to_f32()
}

#[test]
fn a_parameter_that_would_leave_its_range_keeps_its_channel() {
    let mut model = convolutions(vec![node("Relu", "r", &["a"], &["b"])]);
    let mut values = model.constant("w1").unwrap().to_f32().unwrap();
    values[0] = f32::from_bits(1); // The smallest number there is: it cannot be halved.
    values[1] = 4096.0;
    model.set_constant(tensor_from_f32("w1", &[6, 3, 3, 3], &values));
    let (_, report) = check(model, 1, &options());
    assert_eq!(report.chains[0].joints[0].out_of_range, 1);
}

#[test]
fn doing_it_again_changes_nothing() {
    let (mut model, _) =
        check(convolutions(vec![node("Relu", "r", &["a"], &["b"])]), 1, &options());
    let before = model.to_bytes();
    let again = equalize(&mut model, &options()).unwrap();
    let joint = &again.chains[0].joints[0];
    assert_eq!((joint.min_scale, joint.max_scale), (1.0, 1.0));
    assert!(model.to_bytes() == before);
}

#[test]
fn an_option_out_of_bounds_is_an_error() {
    let mut model = convolutions(vec![]);
    let equalization = EqualizationOptions { tolerance: -1.0, ..Default::default() };
    let error = equalize(&mut model, &EqualizeOptions { equalization, ..options() }).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Core(_)), "{error}");
}
