//! A quantized model in a folder: what is saved comes back, and what does not fit is refused before anything changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use fastforward::module::{classes, named_shared_parameters, named_slots};
use fastforward::mpath::Class;
use fastforward::nn::{Layer, Linear, Param};
use fastforward::quantization::quant_init::{
    InitializeOptions, OverwritePolicy, QuantizationConfig,
};
use fastforward::quantization::quantizer::{Quantizer, RangeSettable};
use fastforward::quantization::state::StateInfo;
use fastforward::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, LoadOptions, QuantizerSlot, SaveOptions,
    fuse_qdq_weights, load_quantized_model, save_quantized_model,
};
use fastforward::tensor::{Result, Value};
use fastforward::{ErrorKind, Module, Visitor, VisitorMut};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// Two layers of which the second has no bias, a tied head, a buffer, a list, a map, parameters of several types.
#[derive(Module)]
struct Net {
    first: Linear,
    second: Linear,
    /// The weight of `second` again.
    head: Linear,
    running_mean: Param,
    steps: Vec<Param>,
    tables: BTreeMap<String, Param>,
    absent: Option<Param>,
}

fn tensor(shape: &[usize], seed: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i as f32 + seed) * 0.7).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A net whose values follow from a seed; another seed gives other values everywhere.
fn net(seed: f32) -> Net {
    let var = |shape: &[usize], seed: f32| {
        Param::new(Var::from_tensor(&tensor(shape, seed)).unwrap().as_tensor().clone())
    };
    let second = Linear::from_params(var(&[4, 4], seed + 3.0), None).unwrap();
    let halves = tensor(&[3], seed).to_dtype(DType::F16).unwrap();
    let ids = Tensor::new(&[seed as i64, -7], &Device::Cpu).unwrap();
    Net {
        head: Linear::from_params(second.weight.clone(), None).unwrap(),
        second,
        first: Linear::from_params(var(&[4, 3], seed + 1.0), Some(var(&[4], seed + 2.0))).unwrap(),
        running_mean: tensor(&[4], seed + 4.0).into(),
        steps: vec![halves.into(), tensor(&[], seed).into()],
        tables: BTreeMap::from([("ids".to_owned(), ids.into())]),
        absent: None,
    }
}

/// The same with quantizers on weights and inputs; `second` and `head` hold the same weight quantizer.
fn quantized(seed: f32) -> (Net, StateInfo) {
    let net = net(seed);
    let mut config = QuantizationConfig::for_model(&net);
    let weight = LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0));
    config.add_rule("first/[quantizer:parameter/weight]", weight).unwrap();
    config
        .add_rule("**/[quantizer:activation/input]", LinearQuantizerConfig::new(8).asymmetric())
        .unwrap();
    let done = config.initialize(&net, InitializeOptions::default()).unwrap();
    let set = |slot: &QuantizerSlot, tiles: usize| {
        let quantizer = slot.quantizer();
        let (min, max) = (vec![-0.8; tiles], vec![1.1; tiles]);
        quantizer.as_range_settable().unwrap().set_quantization_range(&min, &max).unwrap();
    };
    set(&net.first.weight_quantizer, 4);
    for layer in [&net.first, &net.second, &net.head] {
        set(&layer.input_quantizer, 1);
    }
    let shared = linear(4);
    shared.set_quantization_range(&[-1.0], &[0.9]).unwrap();
    net.second.weight_quantizer.replace(shared.clone());
    net.head.weight_quantizer.replace(shared);
    (net, StateInfo::new("net").with_rules(&done.resolution))
}

fn linear(num_bits: u32) -> Arc<LinearQuantizer> {
    Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(num_bits)).unwrap())
}

/// Everything that a net is made of, as text that shows every bit.
fn contents(net: &dyn Module) -> Vec<String> {
    let mut all = Vec::new();
    for entry in named_shared_parameters(net) {
        let tensor = entry.parameter.downcast_ref::<Param>().unwrap().tensor();
        let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        let bits: Vec<u64> =
            values.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect();
        all.push(format!("{:?} {:?} {:?} {bits:?}", entry.names, tensor.dtype(), tensor.dims()));
    }
    let mut seen: Vec<Arc<dyn Quantizer>> = Vec::new();
    for entry in named_slots(net) {
        let quantizer = entry.slot.quantizer();
        let first = seen.iter().position(|one| Arc::ptr_eq(one, &quantizer)).unwrap_or(seen.len());
        if !quantizer.is_stub() {
            all.push(format!("{:?} {:?} #{first}", entry.names, quantizer.to_saved()));
        }
        seen.push(quantizer);
    }
    all
}

fn save(net: &dyn Module, info: &StateInfo) -> TempDir {
    let folder = TempDir::new().unwrap();
    save_quantized_model(net, folder.path(), info, SaveOptions::default()).unwrap();
    folder
}

fn load(net: &dyn Module, folder: &Path) -> Result<StateInfo> {
    load_quantized_model(net, folder, Some("net"), InitializeOptions::default())
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_latent_model_comes_back_bit_by_bit() {
    let (before, info) = quantized(1.0);
    let folder = save(&before, &info);
    let after = net(50.0);
    let variables: Vec<Var> =
        [&after.first.weight, &after.second.weight].map(|param| param.var().unwrap()).to_vec();
    let read = load(&after, folder.path()).unwrap();
    assert_eq!(contents(&after), contents(&before));
    assert_eq!(read, info);
    // The variables that an optimizer holds are still the model's, with the new values.
    for (var, param) in variables.iter().zip([&after.first.weight, &after.second.weight]) {
        assert_eq!(var.as_tensor().id(), param.var().unwrap().as_tensor().id());
    }
    assert_eq!(
        variables[0].as_tensor().to_vec2::<f32>().unwrap(),
        before.first.weight.tensor().to_vec2::<f32>().unwrap()
    );
    // It computes the same; a kept quantized weight of before the loading is not used.
    let x = Value::from(tensor(&[2, 3], 9.0));
    let run = |net: &Net| {
        let _lenient = fastforward::flags::strict_quantization(false);
        net.first.forward(&x).unwrap().dequantize().unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(run(&after), run(&before));
}

#[test]
fn a_fused_model_comes_back_without_its_weight_quantizers() {
    let (before, info) = quantized(1.0);
    fuse_qdq_weights(&before, true).unwrap();
    assert!(before.first.weight_quantizer.is_stub());
    let folder = save(&before, &info);
    let after = net(2.0);
    load(&after, folder.path()).unwrap();
    assert_eq!(contents(&after), contents(&before));
    assert!(after.head.weight_quantizer.is_stub() && !after.head.input_quantizer.is_stub());
    // Quantizers that stand where none was saved are left as they are.
    let (other, _) = quantized(3.0);
    let options =
        InitializeOptions { overwrite_policy: OverwritePolicy::Overwrite, ..Default::default() };
    load_quantized_model(&other, folder.path(), None, options).unwrap();
    assert!(!other.first.weight_quantizer.is_stub());
}

#[test]
fn the_same_model_gives_the_same_bytes_and_tied_weights_once() {
    let (model, info) = quantized(1.0);
    let first = files(save(&model, &info).path());
    assert_eq!(first, files(save(&model, &info).path()));
    assert_eq!(first, files(save(&quantized(1.0).0, &info).path()));
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        ["manifest.json", "state.json", "state.safetensors", "weights.safetensors"]
    );
    let weights = safetensors::SafeTensors::deserialize(&first["weights.safetensors"]).unwrap();
    let mut names = weights.names();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "first.bias",
            "first.weight",
            "running_mean",
            "second.weight",
            "steps.0",
            "steps.1",
            "tables.ids"
        ]
    );
    assert_eq!(weights.tensor("steps.0").unwrap().dtype(), safetensors::Dtype::F16);
    let manifest: Json = serde_json::from_slice(&first["manifest.json"]).unwrap();
    assert_eq!(manifest["weights"][2]["names"], json!(["second.weight", "head.weight"]));
    assert_eq!(manifest["class"], json!("quantization::state::Net"));
    // Every element starts at a multiple of its size, so that the file can be mapped.
    for (name, view) in weights.tensors() {
        let start = view.data().as_ptr() as usize - first["weights.safetensors"].as_ptr() as usize;
        let size = view.dtype().bitsize() / 8;
        assert_eq!(start % size, 0, "{name} starts at {start}");
    }
}

/// Saves a model, changes the files, loads into a fresh model, and returns the error. Nothing has changed then.
#[track_caller]
fn refused(model: &dyn Module, change: impl FnOnce(&Path)) -> (ErrorKind, String) {
    let (saved, info) = quantized(1.0);
    let folder = save(&saved, &info);
    change(folder.path());
    let before = contents(model);
    let error = load(model, folder.path()).unwrap_err();
    assert_eq!(contents(model), before, "changed by: {error}");
    (error.kind(), error.to_string())
}

fn edit_manifest(folder: &Path, change: impl FnOnce(&mut Json)) {
    let path = folder.join("manifest.json");
    let mut manifest: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Json), expected: &str) {
        let (kind, message) = refused(&net(2.0), |folder| edit_manifest(folder, change));
        assert_eq!(kind, ErrorKind::State, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    check(|m| m["version"] = json!(2), "version 2 of the format, expected 1");
    check(|m| m["format"] = json!("zip"), "its format is `zip`");
    check(|m| m["model"] = json!("other"), "this is model `other`, expected `net`");
    check(
        |m| m["class"] = json!("a::Gpt"),
        "saved from a `a::Gpt`, the model is a `quantization::state::Net`",
    );
    check(|m| m["files"]["../../secret"] = json!(""), "it lists the files `../../secret`");
    check(|m| m["files"]["state.json"] = json!("0"), "`state.json` is not the file that was saved");
    check(|m| m["extra"] = json!(1), "unknown field `extra`");
    check(|m| m["weights"][0]["names"] = json!([]), "a parameter without a name");
    check(
        |m| m["weights"][0]["names"] = json!(["first.weight", "first.bias"]),
        "the manifest lists `first.bias` twice",
    );
    check(
        |m| m["weights"][1]["shape"] = json!([5]),
        "`first.bias` is F32 [4] in `weights.safetensors`",
    );
    check(
        |m| m["weights"][1]["dtype"] = json!("F16"),
        "F32 [4] in `weights.safetensors`, F16 [4] in",
    );
    check(
        |m| drop(m["weights"].as_array_mut().unwrap().remove(0)),
        "`weights.safetensors` holds `first.weight`, which the manifest does not list",
    );
}

/// A net of other parts.
#[derive(Module)]
#[module(class = "Net")]
struct Other {
    #[module(rename = "first")]
    one: Linear,
    #[module(rename = "sceond")]
    two: Linear,
    head: Linear,
    running_mean: Param,
    steps: Vec<Param>,
}

#[test]
fn every_difference_is_named_at_once() {
    let other = Other {
        one: Linear::from_tensors(tensor(&[4, 2], 1.0), Some(tensor(&[4], 1.0))).unwrap(),
        two: Linear::from_tensors(tensor(&[4, 4], 1.0), None).unwrap(),
        head: Linear::from_tensors(tensor(&[4, 4], 1.0), None).unwrap(),
        running_mean: tensor(&[4], 1.0).to_dtype(DType::F64).unwrap().into(),
        steps: vec![tensor(&[3], 1.0).to_dtype(DType::F16).unwrap().into()],
    };
    let (kind, message) = refused(&other, |_| ());
    assert_eq!(kind, ErrorKind::State);
    for expected in [
        "missing: the model's parameter `sceond.weight` is not in the file; the file has `second.weight`",
        "unexpected: the model has no parameter `second.weight`; the model has `sceond.weight`",
        "unexpected: the model has no parameter `steps.1`",
        "unexpected: the model has no parameter `tables.ids`",
        "`first.weight` is F32 [4, 3] in the file, F32 [4, 2] in the model",
        "`running_mean` is F32 [4] in the file, F64 [4] in the model",
        "the model has no slot `second.weight_quantizer`",
    ] {
        assert!(message.contains(expected), "no `{expected}` in {message}");
    }
}

#[test]
fn parameters_tied_on_one_side_only_are_refused() {
    let mut untied = net(2.0);
    untied.head = Linear::from_tensors(tensor(&[4, 4], 1.0), None).unwrap();
    let (_, message) = refused(&untied, |_| ());
    assert!(
        message.ends_with(
            "`second.weight`, `head.weight` are 2 parameters in the model, and one tied parameter, `second.weight`, in the file"
        ),
        "{message}"
    );
    let folder = save(&untied, &StateInfo::new("net"));
    let tied = net(3.0);
    let before = contents(&tied);
    let message = load(&tied, folder.path()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "`second.weight`, `head.weight` are one tied parameter in the model, and 2 in the file"
        ),
        "{message}"
    );
    assert_eq!(contents(&tied), before);
}

#[test]
fn occupied_slots_follow_the_policy_before_a_weight_is_touched() {
    let (occupied, _) = quantized(5.0);
    let (kind, message) = refused(&occupied, |_| ());
    assert_eq!(kind, ErrorKind::AlreadySet, "{message}");
    assert!(message.contains("`first.weight_quantizer` already holds"), "{message}");
    let (saved, info) = quantized(1.0);
    let folder = save(&saved, &info);
    for (policy, bits) in [(OverwritePolicy::Skip, 2), (OverwritePolicy::Overwrite, 8)] {
        let model = net(7.0);
        model.first.input_quantizer.replace(linear(2));
        let options = InitializeOptions { overwrite_policy: policy, ..Default::default() };
        load_quantized_model(&model, folder.path(), Some("net"), options).unwrap();
        assert_eq!(model.first.input_quantizer.quantizer().num_bits(), Some(bits));
        assert_eq!(
            model.running_mean.tensor().to_vec1::<f32>().unwrap(),
            saved.running_mean.tensor().to_vec1::<f32>().unwrap()
        );
    }
}

#[test]
fn unset_quantizers_are_named_on_both_ways() {
    let model = net(1.0);
    model.first.weight_quantizer.replace(linear(4));
    model.head.input_quantizer.replace(linear(8));
    let folder = TempDir::new().unwrap();
    let info = StateInfo::new("net");
    let error =
        save_quantized_model(&model, folder.path(), &info, SaveOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsetQuantizer);
    for name in ["`first.weight_quantizer` has no range", "`head.input_quantizer` has no range"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let options = SaveOptions { allow_unset: true, ..Default::default() };
    save_quantized_model(&model, folder.path(), &info, options).unwrap();
    let other = net(2.0);
    let before = contents(&other);
    let error = load(&other, folder.path()).unwrap_err();
    assert_eq!((error.kind(), contents(&other)), (ErrorKind::UnsetQuantizer, before));
    let options = LoadOptions { allow_unset: true, ..Default::default() };
    load_quantized_model(&other, folder.path(), Some("net"), options).unwrap();
    assert_eq!(contents(&other), contents(&model));
}

#[test]
fn damaged_and_missing_files_are_refused() {
    for name in ["manifest.json", "state.json", "state.safetensors", "weights.safetensors"] {
        let (kind, message) =
            refused(&net(2.0), |folder| fs::remove_file(folder.join(name)).unwrap());
        assert_eq!(kind, ErrorKind::Io, "{message}");
        assert!(message.contains(name), "{message}");
    }
    let (saved, info) = quantized(1.0);
    let folder = save(&saved, &info);
    let model = net(2.0);
    let before = contents(&model);
    for (name, bytes) in files(folder.path()) {
        let path = folder.path().join(&name);
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 40) {
            fs::write(&path, &bytes[..cut]).unwrap();
            let error = load(&model, folder.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::State, "{name} cut to {cut}: {error}");
        }
        for at in (0..bytes.len()).step_by(1 + bytes.len() / 150) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            // The version of the library in the manifest is there for people: it may read otherwise.
            match load(&model, folder.path()) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::State, "{name} at {at}: {error}"),
                Ok(_) => {
                    assert_eq!(name, "manifest.json");
                    assert_eq!(contents(&model), contents(&saved));
                    load_fresh(&model, &before);
                }
            }
            assert_eq!(contents(&model), before);
        }
        fs::write(&path, &bytes).unwrap();
    }
}

/// Puts the values of `net(2.0)` back.
fn load_fresh(model: &Net, expected: &[String]) {
    for (to, from) in named_shared_parameters(model).iter().zip(named_shared_parameters(&net(2.0)))
    {
        let of = |entry: &fastforward::module::ParameterEntry<'_>| {
            entry.parameter.downcast_ref::<Param>().unwrap().clone()
        };
        of(to).set(&of(&from).tensor()).unwrap();
    }
    for entry in named_slots(model) {
        entry.slot.replace(QuantizerSlot::input().quantizer());
    }
    assert_eq!(contents(model), expected);
}

#[test]
fn a_header_that_promises_more_than_the_file_has_is_refused() {
    let (saved, info) = quantized(1.0);
    let folder = save(&saved, &info);
    let path = folder.path().join("weights.safetensors");
    let mut header = br#"{"first.weight":{"dtype":"F32","shape":[1099511627776,4096],"data_offsets":[0,18014398509481984]}}"#.to_vec();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    fs::write(&path, &bytes).unwrap();
    edit_manifest(folder.path(), |m| {
        m["files"]["weights.safetensors"] = json!(fastforward::files::sha256_of(&bytes));
    });
    let error = load(&net(2.0), folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State, "{error}");
}

#[test]
fn an_existing_folder_is_kept_or_replaced_as_asked() {
    let (model, info) = quantized(1.0);
    let folder = save(&model, &info);
    let before = files(folder.path());
    let (other, _) = quantized(2.0);
    let error =
        save_quantized_model(&other, folder.path(), &info, SaveOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("it exists; choose another"), "{error}");
    assert_eq!(files(folder.path()), before);
    let replace = SaveOptions { replace: true, ..Default::default() };
    save_quantized_model(&other, folder.path(), &info, replace).unwrap();
    let after = net(9.0);
    load(&after, folder.path()).unwrap();
    assert_eq!(contents(&after), contents(&other));
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let error = save_quantized_model(&model, folder.path(), &info, replace).unwrap_err();
    assert!(error.to_string().contains("it holds `notes.txt`"), "{error}");
}

struct Foreign;

impl fastforward::module::Parameter for Foreign {
    fn shape(&self) -> &[usize] {
        &[]
    }
    fn dtype(&self) -> &str {
        "f32"
    }
    fn size_bytes(&self) -> usize {
        4
    }
}

/// A module written by hand can show two parameters under one name.
struct Strange {
    weight: Foreign,
    one: Param,
    other: Param,
}

impl Module for Strange {
    fn class(&self) -> Class {
        Class::define("Strange", "quantization::state::Strange", &[classes::module()])
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        visitor.parameter("weight", &self.weight);
        visitor.parameter("twice", &self.one);
        visitor.parameter("twice", &self.other);
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        visitor.parameter("weight", &mut self.weight);
        visitor.parameter("twice", &mut self.one);
        visitor.parameter("twice", &mut self.other);
    }
}

#[test]
fn parameters_without_a_saved_form_are_named() {
    let model =
        Strange { weight: Foreign, one: tensor(&[1], 0.0).into(), other: tensor(&[1], 1.0).into() };
    let around = TempDir::new().unwrap();
    let folder = around.path().join("model");
    let error = save_quantized_model(&model, &folder, &StateInfo::new("s"), SaveOptions::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("`weight` is no `nn::Param`") && text.contains("`twice`"), "{text}");
    assert_eq!(fs::read_dir(around.path()).unwrap().count(), 0);
}
