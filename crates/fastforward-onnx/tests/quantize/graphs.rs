//! Small graphs for single rules of export and calibration.

use std::sync::Arc;

use fastforward_core::quantization::affine::AffineParameters;
use fastforward_core::quantization::{
    DynamicLinearQuantizer, DynamicLinearQuantizerConfig, Granularity, LinearQuantizer,
    LinearQuantizerConfig,
};
use fastforward_onnx::calibrate::{Batch, RunOptions, Watched, calibrate};
use fastforward_onnx::compare::compare_layers;
use fastforward_onnx::dtype::DType;
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::export::{ExportOptions, export};
use fastforward_onnx::graph::{Model, tensor_from_f32};
use fastforward_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto,
    ValueInfoProto, attribute_int, attribute_proto::AttributeType, node, type_proto,
};
use fastforward_onnx::simulate::{SimulateOptions, simulate};
use fastforward_onnx::tensor::Tensor;
use fastforward_onnx::tree::{Site, Tree};
use fastforward_onnx::verify::{VerifyOptions, verify};
use fastforward_onnx::{Error, ErrorKind};

fn value(name: &str, dtype: DType) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: None };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn model(
    opset: i64,
    nodes: Vec<NodeProto>,
    constants: &[(&str, &[usize])],
    outputs: &[&str],
) -> Model {
    let weight = |(name, shape): &(&str, &[usize])| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|at| (at as f32 * 0.7).sin()).collect();
        tensor_from_f32(name, shape, &values)
    };
    let graph = GraphProto {
        name: Some("g".into()),
        node: nodes,
        initializer: constants.iter().map(weight).collect(),
        input: vec![value("x", DType::F32)],
        output: outputs.iter().map(|name| value(name, DType::F32)).collect(),
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(4),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        ..ModelProto::default()
    };
    Model::from_proto(proto, None).unwrap()
}

fn site<'t>(tree: &'t Tree, name: &str) -> &'t Site {
    let found = tree.sites().iter().find(|site| site.name == name);
    found.unwrap_or_else(|| panic!("no site `{name}` among {:?}", tree.sites()))
}

/// Puts a quantizer of given scales and offset at a site.
#[track_caller]
fn set(tree: &Tree, name: &str, config: LinearQuantizerConfig, scale: &[f32], offset: Option<f32>) {
    let quantizer = LinearQuantizer::new(config.clone()).unwrap();
    quantizer
        .set_parameters(AffineParameters {
            num_bits: config.num_bits,
            narrow_range: config.range.narrow_range,
            scale: scale.to_vec(),
            offset: offset.map(|offset| vec![offset; scale.len()]),
        })
        .unwrap();
    site(tree, name).slot.replace(Arc::new(quantizer));
}

fn int8() -> LinearQuantizerConfig {
    LinearQuantizerConfig::new(8)
}

/// Exports, saves, reads back and verifies on one batch; returns the written graph's nodes as text.
#[track_caller]
fn written(model: &Model, tree: &Tree, options: &ExportOptions, x: &Tensor) -> Vec<String> {
    let exported = export(model, tree, options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.onnx");
    exported.model.save(&path).unwrap();
    let batches = [Ok(vec![("x".to_owned(), x.clone())])];
    let verify_options = VerifyOptions::default();
    let verification =
        verify(&path, model, tree, &exported.summary, batches, &verify_options, &mut ()).unwrap();
    assert!(verification.outputs.iter().all(|one| one.same_rounding.max_abs_difference == 0.0));
    let lines = exported.model.graph().node.iter();
    lines.map(|node| format!("{} {:?} {:?}", node.op_type(), node.input, node.output)).collect()
}

fn ramp(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values = (0..n).map(|at| at as f32 / 8.0 - 2.0).collect();
    Tensor::from_f32(shape.to_vec(), values).unwrap()
}

#[test]
fn nothing_is_renamed_and_equal_pairs_are_shared() {
    let model = model(
        13,
        vec![
            node("Relu", "a", &["x"], &["h"]),
            node("Sigmoid", "b", &["h"], &["s"]),
            node("Add", "c", &["h", "s"], &["y"]),
        ],
        &[],
        &["y", "h"],
    );
    let tree = Tree::new(&model);
    set(&tree, "a.output_quantizer", int8(), &[0.1], None);
    set(&tree, "b.input_quantizer", int8(), &[0.1], None); // the producer's very parameters
    set(&tree, "c.input_quantizer", int8(), &[0.5], None);
    set(&tree, "c.input_quantizer_1", int8(), &[0.25], None);
    set(&tree, "c.output_quantizer", int8(), &[0.3], Some(4.0));
    let lines = written(&model, &tree, &ExportOptions::default(), &ramp(&[4, 8]));
    let expected = [
        r#"Relu ["x"] ["h_unquantized"]"#,
        r#"QuantizeLinear ["h_unquantized", "h_scale", "h_zero_point"] ["h_quantized"]"#,
        r#"DequantizeLinear ["h_quantized", "h_scale", "h_zero_point"] ["h"]"#,
        r#"Sigmoid ["h"] ["s"]"#,
        r#"QuantizeLinear ["h", "h_scale_1", "h_zero_point_1"] ["h_quantized_1"]"#,
        r#"DequantizeLinear ["h_quantized_1", "h_scale_1", "h_zero_point_1"] ["h_dequantized"]"#,
        r#"QuantizeLinear ["s", "s_scale", "s_zero_point"] ["s_quantized"]"#,
        r#"DequantizeLinear ["s_quantized", "s_scale", "s_zero_point"] ["s_dequantized"]"#,
        r#"Add ["h_dequantized", "s_dequantized"] ["y_unquantized"]"#,
        r#"QuantizeLinear ["y_unquantized", "y_scale", "y_zero_point"] ["y_quantized"]"#,
        r#"DequantizeLinear ["y_quantized", "y_scale", "y_zero_point"] ["y"]"#,
    ];
    assert_eq!(lines, expected);
}

#[test]
fn constants_that_others_read_stay() {
    let nodes = vec![
        node("MatMul", "m", &["x", "w"], &["a"]),
        node("Transpose", "t", &["w"], &["wt"]),
        node("MatMul", "n", &["a", "v"], &["b"]),
        node("Add", "add", &["b", "wt"], &["y"]),
    ];
    let model = model(13, nodes, &[("w", &[4, 4]), ("v", &[4, 4])], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "m.weight_quantizer", int8(), &[0.01], None);
    let granularity = Granularity::per_channel(1);
    let scale = [0.01, 0.02, 0.03, 0.04];
    set(&tree, "n.weight_quantizer", int8().with_granularity(granularity), &scale, None);
    let lines = written(&model, &tree, &ExportOptions::default(), &ramp(&[4, 4]));
    assert_eq!(lines[1], r#"MatMul ["x", "w_dequantized"] ["a"]"#);
    assert_eq!(lines[2], r#"Transpose ["w"] ["wt"]"#);
    let exported = export(&model, &tree, &ExportOptions::default()).unwrap().model;
    assert!(exported.constant("w").is_some() && exported.constant("v").is_none());
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap().model;
    assert!(simulated.constant("w").is_some() && simulated.constant("v").is_none());
}

#[test]
fn per_channel_activations_need_a_rank_only_for_axes_from_the_first() {
    let model = model(13, vec![node("Relu", "a", &["x"], &["y"])], &[], &["y"]);
    let tree = Tree::new(&model);
    let channels = |axis| int8().with_granularity(Granularity::per_channel(axis));
    set(&tree, "a.input_quantizer", channels(-1), &[0.1, 0.2, 0.3], None);
    let lines = written(&model, &tree, &ExportOptions::default(), &ramp(&[2, 3]));
    assert_eq!(lines.len(), 3);
    set(&tree, "a.input_quantizer", channels(1), &[0.1, 0.2, 0.3], None);
    let error = simulate(&model, &tree, &SimulateOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Quantizer);
    assert!(
        error.to_string().starts_with("`a.input_quantizer`: the rank of `x` is unknown"),
        "{error}"
    );
}

#[test]
fn every_site_that_cannot_be_written_is_named() {
    let nodes = vec![node("Relu", "a", &["x"], &["h"]), node("MatMul", "m", &["h", "w"], &["y"])];
    let model = model(13, nodes, &[("w", &[4, 4])], &["y"]);
    let tree = Tree::new(&model);
    let dynamic = DynamicLinearQuantizer::new(DynamicLinearQuantizerConfig::new(8)).unwrap();
    site(&tree, "a.input_quantizer").slot.replace(Arc::new(dynamic));
    let blocks = int8().with_granularity(Granularity::per_block(&[1], &[2], &[0]));
    set(&tree, "a.output_quantizer", blocks, &[0.1, 0.2], None);
    site(&tree, "m.weight_quantizer").slot.replace(Arc::new(LinearQuantizer::new(int8()).unwrap()));
    for error in [
        simulate(&model, &tree, &SimulateOptions::default()).unwrap_err(),
        export(&model, &tree, &ExportOptions::default()).unwrap_err(),
    ] {
        assert_eq!(error.problems().len(), 3, "{error}");
        for (problem, name) in error.problems().iter().zip([
            "`a.output_quantizer`: ",
            "`m.weight_quantizer`: ",
            "`a.input_quantizer`: ",
        ]) {
            assert!(problem.starts_with(name), "{problem}");
        }
    }
}

#[test]
fn widths_and_offsets_that_onnx_lacks_are_errors() {
    let model = model(13, vec![node("Relu", "a", &["x"], &["y"])], &[], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "a.input_quantizer", LinearQuantizerConfig::new(6), &[0.1], None);
    set(&tree, "a.output_quantizer", int8(), &[1.0 / 255.0], Some(383.0));
    let error = export(&model, &tree, &ExportOptions::default()).unwrap_err();
    assert_eq!(
        error.problems(),
        [
            "`a.output_quantizer`: offset 383 needs the zero point -255, outside uint8 (0 to 255), because its range \
             does not contain zero; set `zero_in_range = true`",
            "`a.input_quantizer`: activations of 6 bits cannot be written; ONNX has types of 2, 4, 8 and 16 bits",
        ]
    );
    // The simulation has no such limits.
    simulate(&model, &tree, &SimulateOptions::default()).unwrap();
}

#[test]
fn a_narrow_range_stays_narrow() {
    let model = model(7, vec![node("Neg", "a", &["x"], &["y"])], &[], &["y"]);
    let tree = Tree::new(&model);
    let mut config = LinearQuantizerConfig::new(4);
    config.range.narrow_range = true;
    set(&tree, "a.output_quantizer", config, &[0.1], None);
    let lines = written(&model, &tree, &ExportOptions::default(), &ramp(&[2, 32]));
    assert_eq!(lines[1], r#"Clip ["y_unquantized", "y_clip_min", "y_clip_max"] ["y_clipped"]"#);
}

#[test]
fn ties_are_the_only_difference_to_the_simulation() {
    let model = model(13, vec![node("Relu", "a", &["x"], &["y"])], &[], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "a.output_quantizer", int8(), &[1.0], Some(1.0));
    let exported = export(&model, &tree, &ExportOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.onnx");
    exported.model.save(&path).unwrap();
    let x = Tensor::from_f32(vec![1, 4], vec![0.5, 1.5, 2.25, 3.0]).unwrap();
    let batches = [Ok(vec![("x".to_owned(), x)])];
    let options = VerifyOptions::default();
    let found =
        verify(&path, &model, &tree, &exported.summary, batches, &options, &mut ()).unwrap();
    let y = &found.outputs[0];
    assert_eq!(y.same_rounding.max_abs_difference, 0.0);
    // 0.5 - 1 rounds to 0 and so to 1, 0.5 itself to 0; one step.
    assert_eq!((y.simulation.max_abs_difference, y.simulation.noise_power), (1.0, 2.0));
}

#[test]
fn a_file_that_was_tampered_with_does_not_verify() {
    let nodes = vec![node("MatMul", "m", &["x", "w"], &["y"])];
    let model = model(13, nodes, &[("w", &[4, 4])], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "m.weight_quantizer", int8(), &[0.01], None);
    set(&tree, "m.input_quantizer", int8(), &[0.02], None);
    let exported = export(&model, &tree, &ExportOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, expected) in
        [("w_scale", "`m.weight_quantizer`: element"), ("x_scale", "`m.input_quantizer`: scale")]
    {
        let mut file = exported.model.clone();
        file.set_constant(tensor_from_f32(name, &[], &[0.011]));
        let path = folder.path().join(format!("{name}.onnx"));
        file.save(&path).unwrap();
        let options = VerifyOptions::default();
        let error =
            verify(&path, &model, &tree, &exported.summary, [], &options, &mut ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Verification);
        assert!(error.problems()[0].starts_with(expected), "{error}");
    }
}

#[test]
fn weights_in_nested_graphs_are_quantized_where_they_stand() {
    let constant = |name: &str| {
        let mut made = node("Constant", "", &[], &[name]);
        made.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(tensor_from_f32(
                "",
                &[4, 4],
                &(0..16).map(|i| i as f32 / 9.0).collect::<Vec<_>>(),
            )),
            ..AttributeProto::default()
        });
        made
    };
    let branch = |name: &str, weight: &str, output: &str| {
        let mut nodes = vec![node("MatMul", "inner", &["h", weight], &[output])];
        if weight != "outer_w" {
            nodes.insert(0, constant(weight));
        }
        AttributeProto {
            name: Some(name.into()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(GraphProto {
                name: Some(name.into()),
                node: nodes,
                output: vec![value(output, DType::F32)],
                ..GraphProto::default()
            }),
            ..AttributeProto::default()
        }
    };
    let mut holder = node("If", "if", &["c"], &["y"]);
    holder.attribute =
        vec![branch("then_branch", "inner_w", "t"), branch("else_branch", "outer_w", "e")];
    let mut sum = node("ReduceMax", "max", &["x"], &["m"]);
    sum.attribute.push(attribute_int("keepdims", 0));
    let model = model(
        13,
        vec![
            sum,
            node("Greater", "greater", &["m", "zero"], &["c"]),
            node("Relu", "relu", &["x"], &["h"]),
            holder,
        ],
        &[("outer_w", &[4, 4]), ("zero", &[])],
        &["y"],
    );
    let tree = Tree::new(&model);
    set(&tree, "if.then_branch.inner.weight_quantizer", int8(), &[0.01], None);
    set(&tree, "if.else_branch.inner.weight_quantizer", int8(), &[0.005], None);
    set(&tree, "relu.output_quantizer", int8(), &[0.05], None);
    for x in [ramp(&[4, 4]), Tensor::from_f32(vec![1, 4], vec![-1.0; 4]).unwrap()] {
        written(&model, &tree, &ExportOptions::default(), &x);
    }
    let exported = export(&model, &tree, &ExportOptions::default()).unwrap().model;
    let holder = exported.graph().node.last().unwrap();
    let branches: Vec<&GraphProto> = holder.subgraphs().map(|(_, graph)| graph).collect();
    assert_eq!(
        branches[0].node[0].input,
        ["inner_w_quantized", "inner_w_scale", "inner_w_zero_point"]
    );
    assert_eq!(branches[0].node[1].input, ["h_dequantized", "inner_w_dequantized"]);
    assert_eq!(branches[0].node.len(), 2);
    assert_eq!(branches[1].node[0].input, ["h_dequantized", "outer_w_dequantized"]);
    assert!(exported.constant("outer_w").is_none());
}

#[test]
fn calibration_shows_every_value_once_per_batch_and_constants_once() {
    let nodes =
        vec![node("MatMul", "m", &["x", "w"], &["a"]), node("Add", "add", &["a", "a"], &["y"])];
    let model = model(13, nodes, &[("w", &[4, 4])], &["y"]);
    let tree = Tree::new(&model);
    let names =
        ["m.weight_quantizer", "m.output_quantizer", "add.input_quantizer", "m.input_quantizer"];
    let batches = |n: usize| (0..n).map(|_| Ok(vec![("x".to_owned(), ramp(&[2, 4]))]));
    for max_bytes in [1, 1 << 20] {
        let mut seen: Vec<Vec<f32>> = vec![Vec::new(); names.len()];
        let mut observers: Vec<_> = seen
            .iter_mut()
            .map(|seen| {
                |x: fastforward_core::ArrayView<'_>| {
                    seen.extend_from_slice(x.data());
                    Ok(())
                }
            })
            .collect();
        let watched = names
            .iter()
            .zip(&mut observers)
            .map(|(name, observer)| Watched { site: site(&tree, name), observer });
        let options = RunOptions { max_bytes, ..RunOptions::default() };
        let mut ticks = Vec::new();
        let mut progress = |done: usize, total: Option<usize>| ticks.push((done, total));
        let summary =
            calibrate(&model, watched.collect(), batches(3), &options, &mut progress).unwrap();
        drop(observers);
        assert_eq!((summary.batches, summary.constants), (3, 1));
        assert_eq!(ticks, [(1, Some(3)), (2, Some(3)), (3, Some(3))]);
        assert_eq!(summary.shapes["a"], [2, 4]);
        let lengths: Vec<usize> = seen.iter().map(Vec::len).collect();
        assert_eq!(lengths, [16, 24, 24, 24]);
        assert_eq!(seen[1], seen[2]);
    }
}

#[test]
fn calibration_errors_name_site_value_and_batch() {
    let model = model(13, vec![node("Relu", "a", &["x"], &["y"])], &[], &["y"]);
    let tree = Tree::new(&model);
    let refuse = |_: fastforward_core::ArrayView<'_>| {
        Err(fastforward_core::Error::new(fastforward_core::ErrorKind::InvalidData, "too blue"))
    };
    let run = |batches: Vec<_>| {
        let mut observer = refuse;
        let watched =
            vec![Watched { site: site(&tree, "a.output_quantizer"), observer: &mut observer }];
        calibrate(&model, watched, batches, &RunOptions::default(), &mut ()).unwrap_err()
    };
    let batch = vec![("x".to_owned(), ramp(&[2]))];
    assert_eq!(
        run(vec![Ok(batch)]).to_string(),
        "`a.output_quantizer` (value `y`, batch 0): too blue"
    );
    assert_eq!(run(vec![]).to_string(), "no calibration data, but 1 activations to observe");
}

#[test]
fn a_bias_is_rounded_to_the_products_of_both_scales() {
    let nodes = vec![node("Conv", "c", &["x", "w", "b"], &["y"])];
    let model = model(13, nodes, &[("w", &[2, 1, 1, 1]), ("b", &[2])], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "c.input_quantizer", int8(), &[0.5], None);
    let channels = int8().with_granularity(Granularity::per_channel(0));
    set(&tree, "c.weight_quantizer", channels, &[0.25, 0.5], None);
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    assert!(simulated.biases[0].left_because.is_none());
    let engine = Engine::new(&simulated.model, &EngineOptions::default()).unwrap();
    let zero = Tensor::from_f32(vec![1, 2, 1, 1], vec![0.0; 2]).unwrap();
    // 0 and sin(0.7) = 0.644 in steps of 1/8 and 1/4.
    let x = zero.reshape(vec![2, 1, 1, 1]).unwrap();
    let y = engine.run(&[("x", &x)], &["y"]).unwrap().remove(0);
    assert_eq!(y.to_f32(), [0.0, 0.75, 0.0, 0.75]);
    let exported = export(&model, &tree, &ExportOptions::default()).unwrap().model;
    assert_eq!(exported.constant("b_quantized").unwrap().to_i64().unwrap(), [0, 3]);
    assert_eq!(exported.constant("b_scale").unwrap().to_f32().unwrap(), [0.125, 0.25]);

    // A bias with a quantizer of its own keeps it.
    set(&tree, "c.bias_quantizer", int8(), &[0.1], None);
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    assert!(simulated.biases.is_empty());
    let _: Result<(), Error> = exported.check();
}

#[test]
fn an_unknown_operator_is_no_reason_to_refuse_quantized_weights() {
    let mut unknown = node("Rectify", "r", &["a"], &["y"]);
    unknown.domain = Some("com.example".to_owned());
    let nodes = vec![node("MatMul", "m", &["x", "w"], &["a"]), unknown];
    let model = model(21, nodes, &[("w", &[4, 3])], &["y"]);
    let exported = |tree: &Tree| {
        let exported = export(&model, tree, &ExportOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.onnx");
        exported.model.save(&path).unwrap();
        let batches = [Ok(vec![("x".to_owned(), ramp(&[2, 4]))])];
        let options = VerifyOptions::default();
        verify(&path, &model, tree, &exported.summary, batches, &options, &mut ())
    };
    let tree = Tree::new(&model);
    set(&tree, "m.weight_quantizer", int8(), &[0.01], None);
    let found = exported(&tree).unwrap();
    let reason = "operator `Rectify` (node `r`) of the domain `com.example` is not supported by the execution engine";
    assert_eq!((found.constants, found.batches, found.outputs.len()), (1, 0, 0));
    assert_eq!(found.not_executed, [reason]);

    // What an activation's quantizer does shows only in what is computed.
    set(&tree, "m.input_quantizer", int8(), &[0.02], None);
    let error = exported(&tree).unwrap_err();
    assert_eq!(
        (error.kind(), error.problems()),
        (ErrorKind::Unsupported, &[reason.to_owned()][..])
    );
}

#[test]
fn values_that_are_zero_with_and_without_quantization_do_not_differ() {
    let nodes = vec![
        node("MatMul", "m", &["x", "w"], &["a"]),
        node("Sub", "zero", &["a", "a"], &["b"]),
        node("Add", "end", &["a", "b"], &["y"]),
    ];
    let model = model(13, nodes, &[("w", &[4, 3])], &["y"]);
    let tree = Tree::new(&model);
    set(&tree, "m.weight_quantizer", int8(), &[0.01], None);
    let simulated = simulate(&model, &tree, &SimulateOptions::default()).unwrap();
    let layers = |batches: Vec<Result<Batch, Error>>| {
        let options = RunOptions::default();
        let layers = compare_layers(&model, &tree, &simulated, batches, &options, &mut ()).unwrap();
        let named = layers.into_iter().map(|layer| (layer.name, layer.sqnr_db.is_infinite()));
        named.collect::<Vec<(String, bool)>>()
    };
    let found = layers(vec![Ok(vec![("x".to_owned(), ramp(&[2, 4]))])]);
    assert_eq!(found.last().unwrap(), &("zero".to_owned(), true));
    assert_eq!(found.len(), 4);
    assert_eq!(layers(Vec::new()), [("m.weight_quantizer".to_owned(), false)]);
}
