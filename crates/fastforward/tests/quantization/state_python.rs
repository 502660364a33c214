//! Quantization states of the Python library: its layout (spec §7.1) is read, and nothing in it is executed.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use fastforward::module::named_slots;
use fastforward::nn::Linear;
use fastforward::quantization::affine::{AffineParameters, RangeSettings, SavedQuantizer};
use fastforward::quantization::quant_init::{InitializeOptions, OverwritePolicy};
use fastforward::quantization::{
    DynamicLinearQuantizerConfig, Granularity, LinearQuantizer, LinearQuantizerConfig, LoadOptions,
    load_python_quantization_state,
};
use fastforward::{ErrorKind, Module};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

#[derive(Module)]
struct Net {
    fc1: Linear,
    fc2: Linear,
    fc3: Linear,
}

fn net() -> Net {
    let linear = || {
        let weight = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        Linear::from_tensors(weight, None).unwrap()
    };
    Net { fc1: linear(), fc2: linear(), fc3: linear() }
}

/// As PyYAML writes it: block style, tuples tagged, what occurs twice behind an anchor.
const CONFIG: &str = "\
version: '1.0'
name_or_path: org/tiny
transformers_version: None
fastforward_version: 0.1.0
quantizers:
  fc1.input_quantizer: !ff.obj
    name: fastforward.nn.linear_quantizer.LinearQuantizer
    initargs: !!python/tuple
    - !!python/tuple
      - 8
    - symmetric: false
      quantized_dtype: null
    state:
      num_bits: 8
      granularity: !ff.obj
        name: fastforward.quantization.granularity.PerTensor
        initargs: !!python/tuple
        - !!python/tuple []
        - {}
      quantized_dtype: null
      allow_one_sided: true
  fc1.weight_quantizer: !ff.obj
    name: fastforward.nn.linear_quantizer.LinearQuantizer
    newargs: !!python/tuple
    - !!python/tuple
      - 4
    - {}
    initargs: !!python/tuple
    - !!python/tuple
      - 4
    - granularity: &id001 !ff.obj
        name: fastforward.quantization.granularity.PerChannel
        initargs: !!python/tuple
        - !!python/tuple
          - 0
        - {}
      quantized_dtype: &id002 !ff.obj
        name: torch.int8
      allow_one_sided: false
      device: cpu
      param_dtype: !ff.obj {name: torch.bfloat16}
    state:
      num_bits: 4
      granularity: *id001
      quantized_dtype: *id002
      allow_one_sided: false
  fc1.output_quantizer: !ff.obj
    name: fastforward.nn.dynamic_linear_quantizer.DynamicLinearQuantizer
    initargs: !!python/tuple
    - !!python/tuple []
    - num_bits: 8
      granularity: !ff.obj
        name: fastforward.quantization.granularity.PerTile
        initargs: !!python/tuple
        - !!python/tuple
          - !!python/object/apply:torch.Size
            - !!python/tuple
              - 1
              - 2
        - {}
    state:
      num_bits: 8
      quantized_dtype: null
      parameter_inference_fn: null
  fc2.weight_quantizer: &id003 !ff.obj
    name: fastforward.nn.linear_quantizer.LinearQuantizer
    initargs: !!python/tuple
    - !!python/tuple
      - 2
    - granularity: !ff.obj
        name: fastforward.quantization.granularity.PerBlock
        initargs: !!python/tuple
        - !!python/tuple []
        - block_dims: !!python/tuple
          - 1
          block_sizes: 2
          per_channel_dims: !!python/tuple
          - 0
          strict_blocks: true
    state:
      num_bits: 2
      allow_one_sided: true
  fc3.weight_quantizer: *id003
";

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn stored() -> Vec<Stored> {
    let bf16 = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
    };
    vec![
        ("fc1.input_quantizer.scale", Dtype::F32, vec![1], f32s(&[0.1])),
        ("fc1.input_quantizer.offset", Dtype::F64, vec![1], 2.5f64.to_le_bytes().to_vec()),
        ("fc1.weight_quantizer.scale", Dtype::BF16, vec![2], bf16(&[0.375, 0.5])),
        ("fc2.weight_quantizer.scale", Dtype::F32, vec![4], f32s(&[0.1, 0.2, 0.3, 0.4])),
        ("fc2.weight_quantizer.offset", Dtype::F32, vec![4], f32s(&[0.0, -0.0, 0.0, 0.0])),
    ]
}

fn mappings() -> HashMap<String, String> {
    let both = |owner: &str| format!("scale={owner}.scale,offset={owner}.offset");
    [
        ("fc1.input_quantizer", both("fc1.input_quantizer")),
        ("fc1.weight_quantizer", "scale=fc1.weight_quantizer.scale".to_owned()),
        ("fc1.output_quantizer", String::new()),
        ("fc2.weight_quantizer", both("fc2.weight_quantizer")),
        ("fc3.weight_quantizer", both("fc2.weight_quantizer")),
    ]
    .into_iter()
    .map(|(name, mapping)| (name.to_owned(), mapping))
    .collect()
}

fn write(config: &str, stored: &[Stored], mappings: HashMap<String, String>) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.yaml"), config).unwrap();
    let views = stored.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, Some(mappings)).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn load(model: &Net, folder: &TempDir) -> fastforward::tensor::Result<()> {
    let options = LoadOptions::default();
    load_python_quantization_state(model, folder.path(), Some("org/tiny"), options).map(drop)
}

#[test]
fn settings_parameters_and_sharing_are_those_of_the_file() {
    let model = net();
    load(&model, &write(CONFIG, &stored(), mappings())).unwrap();
    let range = |symmetric, allow_one_sided| RangeSettings {
        symmetric,
        allow_one_sided,
        ..RangeSettings::reference()
    };
    let linear = |num_bits, granularity, range, scale: &[f32], offset: Option<&[f32]>| {
        let parameters = AffineParameters {
            num_bits,
            narrow_range: false,
            scale: scale.to_vec(),
            offset: offset.map(<[f32]>::to_vec),
        };
        let config = LinearQuantizerConfig { num_bits, granularity, range };
        Some(SavedQuantizer::Linear(config, Some(parameters)))
    };
    assert_eq!(
        model.fc1.input_quantizer.quantizer().to_saved(),
        linear(8, Granularity::PerTensor, range(false, true), &[0.1], Some(&[2.5]))
    );
    assert_eq!(
        model.fc1.weight_quantizer.quantizer().to_saved(),
        linear(4, Granularity::per_channel(0), range(true, false), &[0.375, 0.5], None)
    );
    let blocks = Granularity::per_block(&[1], &[2], &[0]);
    assert_eq!(
        model.fc2.weight_quantizer.quantizer().to_saved(),
        linear(2, blocks, range(true, true), &[0.1, 0.2, 0.3, 0.4], None)
    );
    let dynamic = DynamicLinearQuantizerConfig {
        num_bits: 8,
        granularity: Granularity::per_tile(&[1, 2]),
        range: range(false, true),
    };
    assert_eq!(
        model.fc1.output_quantizer.quantizer().to_saved(),
        Some(SavedQuantizer::DynamicLinear(dynamic))
    );
    assert!(model.fc2.weight_quantizer.holds(&model.fc3.weight_quantizer.quantizer()));
    assert_eq!(model.fc3.weight_quantizer.label().as_deref(), Some("fc3.weight_quantizer"));
    assert!(model.fc2.input_quantizer.is_stub());
}

#[test]
fn paths_to_one_slot_fill_it_once() {
    let mut model = net();
    model.fc3.weight_quantizer = model.fc2.weight_quantizer.clone();
    load(&model, &write(CONFIG, &stored(), mappings())).unwrap();
    assert_eq!(model.fc3.weight_quantizer.quantizer().num_bits(), Some(2));
}

#[test]
fn a_state_without_quantizers_is_read() {
    let config = CONFIG.split("quantizers:\n").next().unwrap().to_owned() + "quantizers: {}\n";
    let marker = HashMap::from([("__ff_empty_quantizer_state__".to_owned(), "true".to_owned())]);
    load(&net(), &write(&config, &[], marker)).unwrap();
}

/// Loads changed files; nothing may change then.
#[track_caller]
fn refused(
    config: &str,
    stored: &[Stored],
    mappings: HashMap<String, String>,
) -> (ErrorKind, String) {
    let model = net();
    let error = load(&model, &write(config, stored, mappings)).unwrap_err();
    assert!(named_slots(&model).iter().all(|entry| entry.slot.is_stub()), "{error}");
    assert_eq!(model.class().name(), "Net");
    (error.kind(), error.to_string())
}

#[test]
fn what_is_not_of_the_subset_is_refused_with_object_and_line() {
    #[track_caller]
    fn check(from: &str, to: &str, expected: &str) {
        assert!(CONFIG.contains(from));
        let (kind, text) = refused(&CONFIG.replacen(from, to, 1), &stored(), mappings());
        assert_eq!(kind, ErrorKind::State, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    check("version: '1.0'", "version: '2.0'", "version 2.0 of the format, expected 1.0");
    check("org/tiny", "org/huge", "for model `org/huge`, expected `org/tiny`");
    check("quantizers:\n", "quantisers:\n", "line 6: `quantisers` is no part of a state");
    check(
        "name: fastforward.nn.linear_quantizer.LinearQuantizer",
        "name: os.system",
        "`config.yaml` line 6: `fc1.input_quantizer`: `os.system` is not supported",
    );
    check(
        "linear_quantizer.LinearQuantizer",
        "linear_quantizer.MyQuantizer",
        "`fastforward.nn.linear_quantizer.MyQuantizer` is not supported; LinearQuantizer and",
    );
    check(
        "      - 8\n",
        "      - !!python/object/apply:os.system [reboot]\n",
        "line 10: `fc1.input_quantizer`: `num_bits` is a sequence with tag \
         `tag:yaml.org,2002:python/object/apply:os.system`, expected an integer",
    );
    check(
        "parameter_inference_fn: null",
        "parameter_inference_fn: !!python/name:os.abort ''",
        "`fc1.output_quantizer`: `parameter_inference_fn` is a Python function, which is not read",
    );
    check(
        "symmetric: false",
        "symetric: false",
        "line 11: `fc1.input_quantizer`: `symetric` is no setting",
    );
    check("symmetric: false", "symmetric: 'no'", "`no`, expected `true` or `false`");
    check("num_bits: 8", "num_bits: 8.5", "`num_bits` is `8.5`, expected an integer");
    check("name: torch.int8", "name: torch.uint8", "dtype `torch.uint8` is not supported");
    check(
        "num_bits: 4",
        "num_bits: 9",
        "line 37: `fc1.weight_quantizer`: codes of 9 bits do not fit `torch.int8`",
    );
    check(
        "granularity.PerTensor",
        "granularity.PerToken",
        "granularity `fastforward.quantization.granularity.PerToken`",
    );
    check("strict_blocks: true", "strict: true", "PerBlock has no argument `strict`");
    check("block_sizes: 2", "block_sizes: [2, 2]", "PerBlock has 1 dims and 2 sizes");
    check("block_sizes: 2", "block_sizes: -2", "-2 is out of range here");
    check("block_sizes: 2", "block_sizes: 3", "`fc2.weight_quantizer`: PerBlock");
    check("  fc3.weight", "  fc2.weight", "line 83: `fc2.weight_quantizer` is given twice");
    check("*id003", "*id004", "no YAML");
    check(
        "- symmetric: false",
        "- &id009\n      symmetric: *id009",
        "an alias of something that is not complete",
    );
    check("\nquantizers:", "\n---\nquantizers:", "a second document");
    check(
        "  fc1.output_quantizer: !ff.obj",
        "  fc1.output_quantizer:",
        "a mapping, expected `!ff.obj`",
    );
}

#[test]
fn every_problem_is_named_at_once() {
    let config = CONFIG
        .replace("num_bits: 4", "num_bits: four")
        .replace("name: torch.int8", "name: torch.complex64")
        .replace("fc1.output_quantizer", "fc9.output_quantizer");
    let (_, text) = refused(&config, &stored()[1..], mappings());
    for expected in [
        "`num_bits` is `four`",
        "dtype `torch.complex64` is not supported",
        "`fc1.input_quantizer`: tensor `fc1.input_quantizer.scale` is missing",
        "unexpected tensors of `fc1.output_quantizer`",
        "`fc9.output_quantizer`: the header of the tensors does not list it",
    ] {
        assert!(text.contains(expected), "no `{expected}` in {text}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let check = |stored: &[Stored], mappings: HashMap<String, String>, expected: &str| {
        let (kind, text) = refused(CONFIG, stored, mappings);
        assert_eq!(kind, ErrorKind::State, "{text}");
        assert!(text.contains(expected), "no `{expected}` in {text}");
    };
    let with = |at: usize, tensor: Stored| {
        let mut all = stored();
        all[at] = tensor;
        all
    };
    let mapped = |name: &str, mapping: &str| {
        let mut all = mappings();
        all.insert(name.to_owned(), mapping.to_owned());
        all
    };
    let scale = "fc1.input_quantizer.scale";
    check(&with(0, (scale, Dtype::F32, vec![1], f32s(&[-0.1]))), mappings(), "scale -0.1");
    check(&with(0, (scale, Dtype::I8, vec![1], vec![1])), mappings(), "is I8, expected floats");
    check(&with(0, (scale, Dtype::F32, vec![1, 1], f32s(&[0.1]))), mappings(), "shape [1, 1]");
    check(
        &with(0, (scale, Dtype::F32, vec![2], f32s(&[0.1, 0.2]))),
        mappings(),
        "2 scales need as many offsets",
    );
    let wide = 0.1f64.to_le_bytes().to_vec();
    check(&with(0, (scale, Dtype::F64, vec![1], wide)), mappings(), "do not hold exactly");
    let channel = "fc1.weight_quantizer.scale";
    let three = with(2, (channel, Dtype::F32, vec![3], f32s(&[0.1, 0.2, 0.3])));
    check(&three, mappings(), "needs 2 scales, found 3");
    let name = "fc1.weight_quantizer";
    check(&stored(), mapped(name, "scale"), "`scale` does not say `parameter=tensor`");
    check(&stored(), mapped(name, "zero=fc1.weight_quantizer.scale"), "it has no `scale`");
    let offset = "scale=fc1.weight_quantizer.scale,offset=fc1.weight_quantizer.scale";
    check(&stored(), mapped(name, offset), "it has an `offset`, unlike");
    check(
        &stored(),
        mapped("fc1.output_quantizer", "scale=fc1.weight_quantizer.scale"),
        "it has no parameter `scale`",
    );
    check(
        &stored(),
        mapped("fc3.weight_quantizer", ""),
        "one quantizer in `config.yaml`, with different tensors",
    );
    let mut more = stored();
    more.push(("stray", Dtype::F32, vec![1], f32s(&[1.0])));
    check(&more, mappings(), "unexpected tensor `stray`");
}

#[test]
fn lazy_parameters_are_refused_unless_allowed() {
    let mut lazy = mappings();
    lazy.insert("fc1.weight_quantizer".into(), "scale=fc1.weight_quantizer.scale::lazy".into());
    let mut rest = stored();
    rest.remove(2);
    let (kind, text) = refused(CONFIG, &rest, lazy.clone());
    assert_eq!(kind, ErrorKind::UnsetQuantizer);
    assert!(text.contains("`fc1.weight_quantizer` has no range yet"), "{text}");
    let model = net();
    let folder = write(CONFIG, &rest, lazy);
    let options = LoadOptions { allow_unset: true, ..Default::default() };
    load_python_quantization_state(&model, folder.path(), None, options).unwrap();
    let weight = model.fc1.weight_quantizer.quantizer();
    assert!(
        !weight.is_stub() && weight.as_range_settable().unwrap().quantization_range().is_none()
    );
}

#[test]
fn occupied_slots_follow_the_policy() {
    let folder = write(CONFIG, &stored(), mappings());
    let occupied = || {
        let model = net();
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(3)).unwrap();
        model.fc1.input_quantizer.replace(Arc::new(quantizer));
        model
    };
    let model = occupied();
    let error = load(&model, &folder).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadySet, "{error}");
    assert!(model.fc1.weight_quantizer.is_stub());
    for (policy, bits) in [(OverwritePolicy::Skip, 3), (OverwritePolicy::Overwrite, 8)] {
        let model = occupied();
        let options = InitializeOptions { overwrite_policy: policy, ..Default::default() };
        load_python_quantization_state(&model, folder.path(), None, options).unwrap();
        assert_eq!(model.fc1.input_quantizer.quantizer().num_bits(), Some(bits));
        assert_eq!(model.fc1.weight_quantizer.quantizer().num_bits(), Some(4));
    }
}

/// Twenty levels of ten aliases each would be more nodes than any memory holds, if an alias were a copy.
#[test]
fn aliases_cost_nothing_and_depth_is_bounded() {
    let mut text = String::from("version: '1.0'\nname_or_path: x\na0: &a0 []\n");
    for level in 1..20 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let (kind, message) = refused(&text, &[], HashMap::new());
    assert_eq!(kind, ErrorKind::State);
    assert!(message.contains("`a19` is no part of a state"), "{message}");
    for (depth, expected) in [(40, "nested too deeply"), (100_000, "config.yaml` line 1")] {
        let deep = format!("version: {}{}", "[".repeat(depth), "]".repeat(depth));
        let (_, message) = refused(&deep, &[], HashMap::new());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn cut_and_flipped_files_are_errors_and_never_panics() {
    let folder = write(CONFIG, &stored(), mappings());
    for name in ["config.yaml", "model.safetensors"] {
        let path = folder.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for cut in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load(&net(), &folder).is_err(), "{name} cut to {cut}");
        }
        for at in (0..bytes.len()).step_by(3) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 7);
            fs::write(&path, &flipped).unwrap();
            // Some flips give another valid state, another scale for one.
            let model = net();
            if load(&model, &folder).is_err() {
                assert!(
                    named_slots(&model).iter().all(|entry| entry.slot.is_stub()),
                    "{name} {at}"
                );
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    fs::remove_file(folder.path().join("config.yaml")).unwrap();
    assert_eq!(load(&net(), &folder).unwrap_err().kind(), ErrorKind::Io);
}
