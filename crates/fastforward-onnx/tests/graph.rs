//! Files: what is read is written back, what is broken is refused.

use std::fs;
use std::path::{Path, PathBuf};

use fastforward_onnx::ErrorKind;
use fastforward_onnx::dtype::DType;
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::graph::{Model, tensor_from_codes, tensor_from_f32};
use fastforward_onnx::proto::{
    Message, ModelProto, StringStringEntryProto, TensorProto, node, tensor_proto,
};

fn example(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../examples", path].iter().collect()
}

fn mlp() -> (ModelProto, Vec<u8>) {
    let bytes = fs::read(example("digits/digits_mlp.onnx")).unwrap();
    (ModelProto::decode(bytes.as_slice()).unwrap(), bytes)
}

fn message(proto: ModelProto) -> String {
    Model::from_proto(proto, None).unwrap_err().to_string()
}

#[test]
fn every_example_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["digits/digits_cnn.onnx", "digits/digits_mlp.onnx", "fashion/fashion_cnn.onnx"] {
        let model = Model::load(&example(path)).unwrap();
        assert!(model.is_canonical());
        let target = folder.path().join("copy.onnx");
        let saved = model.save(&target).unwrap();
        assert_eq!(saved.data, None);
        let (before, after) = (fs::read(example(path)).unwrap(), fs::read(&target).unwrap());
        assert_eq!(saved.size_bytes, after.len() as u64);
        assert!(before == after, "{path}");
    }
    // Nothing but the file is left behind.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_changed_constant_leaves_all_other_bytes() {
    let (_, bytes) = mlp();
    let mut model = Model::from_bytes(bytes.clone(), None).unwrap();
    let old = model.constant("fc3.bias").unwrap();
    let mut values = old.to_f32().unwrap();
    let place = bytes.windows(40).position(|w| w == old.bytes().unwrap().as_ref()).unwrap();
    values[0] += 1.0;
    model.set_constant(tensor_from_f32("fc3.bias", &[10], &values));
    let changed = model.to_bytes();
    assert_eq!(changed.len(), bytes.len());
    let differing: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != changed[i]).collect();
    assert!(differing.iter().all(|i| (place..place + 4).contains(i)), "{differing:?}");
}

#[test]
fn a_file_with_fields_of_a_newer_schema_says_that_it_would_lose_them() {
    let (_, mut bytes) = mlp();
    bytes.extend([0xfa, 0x3f, 0x01, 0x41]); // field 1023, one byte
    let model = Model::from_bytes(bytes, None).unwrap();
    assert!(!model.is_canonical());
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() {
    for path in ["digits/digits_mlp.onnx", "digits/digits_cnn.onnx"] {
        let bytes = fs::read(example(path)).unwrap();
        for len in (0..bytes.len()).step_by(7).chain(bytes.len() - 64..bytes.len()) {
            let error = Model::from_bytes(bytes[..len].to_vec(), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{len} bytes: {error}");
        }
    }
}

#[test]
fn flipped_bytes_give_an_error_or_a_model_never_a_panic() {
    let (_, bytes) = mlp();
    let mut n_refused = 0;
    let weights = |i: usize| i > 400 && i < bytes.len() - 400;
    for position in (0..bytes.len()).filter(|&i| !weights(i) || i % 97 == 0) {
        for flip in [0x01, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[position] ^= flip;
            match Model::from_bytes(broken, None) {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    n_refused += 1;
                }
                Ok(model) => {
                    model.to_bytes();
                    // Whatever is left of the graph: an engine or a message.
                    let _ = Engine::new(&model, &EngineOptions::default());
                }
            }
        }
    }
    assert!(n_refused > 500, "{n_refused}");
}

#[test]
fn other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, content: &[u8], kind: ErrorKind| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = Model::load(&path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    };
    check("empty.onnx", b"", ErrorKind::Malformed);
    check("text.onnx", b"schema_version = 1\n", ErrorKind::Malformed);
    check("image.onnx", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ErrorKind::Malformed);
    check("zeros.onnx", &[0; 4096], ErrorKind::Malformed);
    assert_eq!(Model::load(folder.path()).unwrap_err().kind(), ErrorKind::Io);
    let missing = Model::load(&folder.path().join("missing.onnx")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read `"), "{missing}");
}

#[test]
fn versions_that_are_too_new_are_refused_by_number() {
    let (mut proto, _) = mlp();
    proto.opset_import[0].version = Some(29);
    assert_eq!(message(proto), "operator set `ai.onnx` version 29 is unknown, expected 1 to 28");
    let (mut proto, _) = mlp();
    proto.ir_version = Some(15);
    assert_eq!(message(proto), "IR version 15 is newer than 14, the newest one known");
    for version in 1..=28 {
        let (mut proto, _) = mlp();
        proto.opset_import[0].version = Some(version);
        assert!(Model::from_proto(proto, None).is_ok());
    }
}

#[test]
fn contradictions_are_reported_all_at_once() {
    let (mut proto, _) = mlp();
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer[0].dims = vec![-1, 64];
    graph.initializer[1].dims = vec![i64::MAX, i64::MAX];
    graph.initializer[2].raw_data = Some(vec![0; 3].into());
    graph.node[3].input[0] = "nowhere".to_owned();
    graph.node[4].output[0] = "r1".to_owned();
    let error = Model::from_proto(proto, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidGraph);
    let problems = error.problems().join("\n");
    for expected in [
        "initializer `fc1.weight`: shape [-1, 64] has a negative size",
        "initializer `fc1.bias`: shape [9223372036854775807, 9223372036854775807] has too many elements",
        "initializer `fc2.weight`: has 3 bytes, but float32 of shape",
        "operator `Gemm` (node `g2`) uses the value `nowhere`, which nothing defines",
        "value `r1` is defined twice",
    ] {
        assert!(problems.contains(expected), "{expected}\n---\n{problems}");
    }
}

#[test]
fn unknown_element_types_are_refused_by_number() {
    let (mut proto, _) = mlp();
    proto.graph.as_mut().unwrap().initializer[0].data_type = Some(99);
    assert_eq!(message(proto), "initializer `fc1.weight`: element type number 99 is unknown");
}

#[test]
fn values_of_outer_graphs_are_known_inside_nested_ones() {
    let (mut proto, _) = mlp();
    let mut inner = proto.graph.clone().unwrap();
    inner.node = vec![node("Relu", "inner", &["g1"], &["inner_out"])];
    inner.input.clear();
    inner.initializer.clear();
    inner.output.truncate(1);
    inner.output[0].name = Some("inner_out".to_owned());
    let mut branch = node("If", "choice", &["flag"], &["chosen"]);
    for name in ["then_branch", "else_branch"] {
        branch.attribute.push(fastforward_onnx::proto::AttributeProto {
            name: Some(name.to_owned()),
            g: Some(inner.clone()),
            ..Default::default()
        });
    }
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer.push(tensor_bool("flag"));
    graph.node.push(branch);
    let model = Model::from_proto(proto.clone(), None).unwrap();
    assert_eq!(
        model.index().consumers("g1").iter().map(|u| u.input).collect::<Vec<_>>(),
        [Some(0), None]
    );

    inner.node[0].input[0] = "unknown".to_owned();
    let graph = proto.graph.as_mut().unwrap();
    graph.node.last_mut().unwrap().attribute[0].g = Some(inner);
    assert_eq!(
        message(proto),
        "operator `Relu` (node `inner`) uses the value `unknown`, which nothing defines"
    );
}

fn tensor_bool(name: &str) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DType::Bool.to_onnx()),
        raw_data: Some(vec![1].into()),
        ..TensorProto::default()
    }
}

// External data.

/// The MLP with its weights in `location`, which holds `data`.
fn external(
    folder: &Path,
    location: &str,
    entries: &[(&str, &str)],
) -> Result<Model, fastforward_onnx::Error> {
    let (mut proto, _) = mlp();
    let tensor = &mut proto.graph.as_mut().unwrap().initializer[0];
    tensor.raw_data = None;
    tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    tensor.external_data = vec![entry("location", location)];
    tensor.external_data.extend(entries.iter().map(|(key, value)| entry(key, value)));
    let path = folder.join("model.onnx");
    fs::write(&path, proto.encode_to_vec()).unwrap();
    Model::load(&path)
}

#[test]
fn external_data_is_found_beside_the_model_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (proto, _) = mlp();
    let raw = proto.graph.unwrap().initializer[0].raw_data.clone().unwrap();
    let mut data = vec![0xaa; 100];
    data.extend_from_slice(&raw);
    data.extend([0xbb; 5]);
    fs::write(folder.path().join("weights.bin"), &data).unwrap();
    let model = external(folder.path(), "weights.bin", &[("offset", "100")]).unwrap();
    assert!(model.constant("fc1.weight").unwrap().is_external());
    assert_eq!(model.constant("fc1.weight").unwrap().bytes().unwrap(), raw);

    // Elsewhere: both files as they were.
    let other = tempfile::tempdir().unwrap();
    let saved = model.save(&other.path().join("copy.onnx")).unwrap();
    assert_eq!(saved.data.as_deref(), Some(other.path().join("weights.bin").as_path()));
    assert!(fs::read(other.path().join("weights.bin")).unwrap() == data);
    assert!(fs::read(&saved.model).unwrap() == fs::read(folder.path().join("model.onnx")).unwrap());

    // Beside the original: the data file that is read from is not touched.
    let beside = model.save(&folder.path().join("copy.onnx")).unwrap();
    assert_eq!(beside.data, Some(folder.path().join("copy.onnx.data")));
    assert!(fs::read(folder.path().join("weights.bin")).unwrap() == data);
    let again = Model::load(&beside.model).unwrap();
    assert_eq!(again.constant("fc1.weight").unwrap().bytes().unwrap(), raw);

    // Over the original: refused, nothing changes.
    let before = fs::read(folder.path().join("model.onnx")).unwrap();
    let error = model.save(&folder.path().join("model.onnx")).unwrap_err();
    assert!(error.to_string().ends_with("the model was read from it"), "{error}");
    assert!(fs::read(folder.path().join("model.onnx")).unwrap() == before);

    // A tensor that was external and is replaced stays outside the file.
    let mut changed = model.clone();
    changed.set_constant(tensor_from_f32("fc1.weight", &[64, 64], &[0.5; 4096]));
    let third = tempfile::tempdir().unwrap();
    let saved = changed.save(&third.path().join("changed.onnx")).unwrap();
    let again = Model::load(&saved.model).unwrap();
    let weight = again.constant("fc1.weight").unwrap();
    assert!(weight.is_external());
    assert_eq!(weight.to_f32().unwrap(), [0.5; 4096]);

    // And the engine reads it.
    Engine::new(&model, &EngineOptions::default()).unwrap();
}

#[test]
fn external_data_that_escapes_or_is_short_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("weights.bin"), vec![0; 100]).unwrap();
    fs::create_dir(folder.path().join("folder.bin")).unwrap();
    let check = |location: &str, entries: &[(&str, &str)], expected: &str| {
        let error = external(folder.path(), location, entries).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ExternalData);
        assert!(error.to_string().contains(expected), "{error}\nexpected: {expected}");
    };
    let inside = "expected a path inside the model's folder";
    for location in ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "", "..\\weights.bin"]
    {
        check(location, &[], inside);
    }
    check("missing.bin", &[], "cannot read external data");
    check("folder.bin", &[], "is not a file");
    check("weights.bin", &[], "bytes at 0, but");
    check("weights.bin", &[("offset", "18446744073709551615")], "but `");
    check(
        "weights.bin",
        &[("offset", "-1")],
        "external data has the offset `-1`, expected a number",
    );
    check("weights.bin", &[("length", "18446744073709551615")], "but type and shape need");
    check("weights.bin", &[("length", "99")], "but type and shape need");
}

#[test]
fn nothing_is_left_where_a_file_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(&example("digits/digits_mlp.onnx")).unwrap();
    let error = model.save(&folder.path().join("missing/model.onnx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    fs::create_dir(folder.path().join("taken.onnx")).unwrap();
    assert!(model.save(&folder.path().join("taken.onnx")).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn constant_nodes_are_constants() {
    let mut model = Model::load(&example("digits/digits_mlp.onnx")).unwrap();
    let tensor = tensor_from_codes("inner_name", DType::I8, &[2], &[-1, 5]).unwrap();
    let mut constant = node("Constant", "k", &[], &["k_out"]);
    constant.attribute.push(fastforward_onnx::proto::AttributeProto {
        name: Some("value".to_owned()),
        t: Some(tensor),
        ..Default::default()
    });
    let mut ints = node("Constant", "shape", &[], &["shape_out"]);
    ints.attribute.push(fastforward_onnx::proto::attribute_ints("value_ints", &[1, -1]));
    model.graph_mut().node.extend([constant, ints]);
    model.check().unwrap();
    assert_eq!(model.constant("k_out").unwrap().to_i64().unwrap(), [-1, 5]);
    assert_eq!(model.constant("shape_out").unwrap().to_i64().unwrap(), [1, -1]);
    assert!(model.constant("k").is_none());

    model.set_constant(tensor_from_f32("k_out", &[1], &[2.5]));
    let node = model.graph().node.iter().find(|node| node.name() == "k").unwrap();
    assert_eq!(node.attribute[0].t.as_ref().unwrap().name(), "inner_name");
    assert_eq!(model.constant("k_out").unwrap().to_f32().unwrap(), [2.5]);
}
