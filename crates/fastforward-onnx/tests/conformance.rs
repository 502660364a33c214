//! The official ONNX node cases in `conformance/onnx` against our arithmetic
//! and against the engine with its working copy.

use std::path::PathBuf;

use fastforward_onnx::dtype::DType;
use fastforward_onnx::engine::{Engine, EngineOptions};
use fastforward_onnx::graph::{Constant, Model};
use fastforward_onnx::proto::{Message, TensorProto};
use fastforward_onnx::qdq;
use fastforward_onnx::tensor::Tensor;
use fastforward_onnx::{Error, ErrorKind};

struct Case {
    name: String,
    model: Model,
    inputs: Vec<TensorProto>,
    outputs: Vec<TensorProto>,
}

fn cases() -> Vec<Case> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../conformance/onnx"].iter().collect();
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    let read = |folder: &PathBuf| {
        let tensors = |kind: &str| {
            let path = |i: usize| folder.join(format!("test_data_set_0/{kind}_{i}.pb"));
            (0..)
                .map_while(|i| std::fs::read(path(i)).ok())
                .map(|bytes| TensorProto::decode(bytes.as_slice()).unwrap())
                .collect::<Vec<_>>()
        };
        Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model: Model::load(&folder.join("model.onnx")).unwrap(),
            inputs: tensors("input"),
            outputs: tensors("output"),
        }
    };
    folders.iter().map(read).collect()
}

/// Exactly the same type, shape and elements. All cases are exact: integers by
/// definition, floats because each element is one product of few digits.
#[track_caller]
fn assert_same(case: &str, found: &TensorProto, expected: &TensorProto) {
    assert_eq!(found.data_type, expected.data_type, "{case}: type");
    assert_eq!(found.dims, expected.dims, "{case}: shape");
    let (found, expected) = (Constant::of(found), Constant::of(expected));
    assert_eq!(found.bytes().unwrap(), expected.bytes().unwrap(), "{case}: elements");
}

#[test]
fn conformance_quantize_linear_and_dequantize_linear() {
    let mut n_run = 0;
    for case in cases() {
        let node = &case.model.graph().node[0];
        if !matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear") {
            continue;
        }
        let inputs: Vec<Option<&TensorProto>> = case.inputs.iter().map(Some).collect();
        let found = qdq::evaluate(node, &inputs, None).unwrap();
        assert_same(&case.name, &found, &case.outputs[0]);
        n_run += 1;
    }
    assert_eq!(n_run, 27);
}

#[test]
fn conformance_dynamic_quantize_linear() {
    let mut n_run = 0;
    for case in cases().iter().filter(|case| case.name.contains("dynamicquantizelinear")) {
        let x = Constant::of(&case.inputs[0]).to_f32().unwrap();
        let (codes, scale, zero_point) = qdq::dynamic_quantize_linear(&x).unwrap();
        let wide: Vec<i64> = codes.into_iter().map(i64::from).collect();
        assert_eq!(wide, Constant::of(&case.outputs[0]).to_i64().unwrap(), "{}", case.name);
        assert_eq!([scale], *Constant::of(&case.outputs[1]).to_f32().unwrap(), "{}", case.name);
        assert_eq!(
            [i64::from(zero_point)],
            *Constant::of(&case.outputs[2]).to_i64().unwrap(),
            "{}",
            case.name
        );
        n_run += 1;
    }
    assert_eq!(n_run, 6);
}

/// Runs the case's graph with the first `n_fed` inputs fed and the others constant.
fn run(case: &Case, n_fed: usize) -> Result<Vec<Tensor>, Error> {
    let mut model = case.model.clone();
    let names: Vec<String> = model.graph().input.iter().map(|i| i.name().to_owned()).collect();
    for (name, tensor) in names.iter().zip(&case.inputs).skip(n_fed) {
        let tensor = TensorProto { name: Some(name.clone()), ..tensor.clone() };
        model.graph_mut().initializer.push(tensor);
    }
    let fed: Vec<Tensor> =
        case.inputs.iter().take(n_fed).map(|t| Constant::of(t).to_tensor().unwrap()).collect();
    let engine = Engine::new(&model, &EngineOptions::default())?;
    let inputs: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&fed).collect();
    let outputs: Vec<&str> = model.graph().output.iter().map(|o| o.name()).collect();
    engine.run(&inputs, &outputs)
}

fn has_minifloat(case: &Case) -> Option<DType> {
    let dtypes = case.inputs.iter().chain(&case.outputs).map(|t| DType::from_onnx(t.data_type()));
    dtypes.filter_map(Result::ok).find(|dtype| dtype.is_minifloat())
}

/// Compares what the engine computed: exactly, but for `DynamicQuantizeLinear`,
/// where the engine multiplies by `1 / scale` and may be one step off.
#[track_caller]
fn assert_computed(case: &Case, found: &[Tensor]) {
    assert_eq!(found.len(), case.outputs.len());
    for (found, expected) in found.iter().zip(&case.outputs) {
        let expected = Constant::of(expected).to_tensor().unwrap();
        if case.name.contains("dynamicquantizelinear") {
            assert_eq!(found.dtype(), expected.dtype());
            let tolerance = if expected.dtype() == DType::U8 { 1.0 } else { 1e-8 };
            for (found, expected) in found.to_f32().iter().zip(expected.to_f32()) {
                assert!((found - expected).abs() <= tolerance, "{}", case.name);
            }
        } else {
            assert_eq!(*found, expected, "{}", case.name);
        }
    }
}

#[test]
fn conformance_every_integer_case_runs_in_the_engine_with_constant_parameters() {
    let mut n_run = 0;
    for case in cases() {
        if has_minifloat(&case).is_some() {
            continue;
        }
        let found = run(&case, 1).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_computed(&case, &found);
        n_run += 1;
    }
    assert_eq!(n_run, 37);
}

#[test]
fn conformance_parameters_may_be_computed_except_for_blocks() {
    for case in cases() {
        if has_minifloat(&case).is_some() {
            continue;
        }
        let found = run(&case, case.inputs.len());
        if case.name.contains("blocked") {
            let error = found.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("scales of blocks"), "{}: {error}", case.name);
            continue;
        }
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_computed(&case, &found);
    }
}

/// Computed in 4- and 8-bit floats: constants are dequantized, values that
/// depend on an input are refused by the name of the type.
#[test]
fn conformance_minifloat_activations_are_refused_by_name() {
    let mut refused = Vec::new();
    for case in cases() {
        let Some(dtype) = has_minifloat(&case) else { continue };
        let error = run(&case, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", case.name);
        assert!(error.to_string().contains(dtype.name()), "{}: {error}", case.name);
        let all_constant = run(&case, 0).map(|mut values| values.remove(0));
        match all_constant {
            Ok(value) => {
                let expected = Constant::of(&case.outputs[0]).to_tensor().unwrap();
                assert_eq!(value, expected, "{}", case.name);
            }
            Err(error) => {
                assert!(error.to_string().contains(dtype.name()), "{}: {error}", case.name)
            }
        }
        refused.push(case.name);
    }
    assert_eq!(
        refused,
        [
            "test_dequantizelinear_e4m3fn",
            "test_dequantizelinear_e4m3fn_float16",
            "test_dequantizelinear_e4m3fn_zero_point",
            "test_dequantizelinear_e5m2",
            "test_dequantizelinear_float4e2m1",
            "test_quantizelinear_e4m3fn",
            "test_quantizelinear_e5m2",
            "test_quantizelinear_float4e2m1",
        ]
    );
}

#[test]
fn conformance_every_file_is_written_as_it_was_read() {
    let mut n_run = 0;
    for case in cases() {
        let bytes = std::fs::read(case.model.path().unwrap()).unwrap();
        assert!(case.model.is_canonical(), "{}", case.name);
        assert!(case.model.to_bytes() == bytes, "{}", case.name);
        n_run += 1;
    }
    assert_eq!(n_run, 45);
}
