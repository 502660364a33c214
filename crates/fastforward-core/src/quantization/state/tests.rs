use mpath::Class;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::module::{Visitor, VisitorMut, classes};
use crate::quantization::quantizer::{QuantizerSlot, RangeSettable};

/// A model of these slots.
struct Slots(Vec<(&'static str, QuantizerSlot)>);

impl Module for Slots {
    fn class(&self) -> Class {
        Class::define("Slots", "state_tests::Slots", &[classes::module()])
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        self.0.iter().for_each(|(name, slot)| visitor.slot(name, slot));
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        self.0.iter_mut().for_each(|(name, slot)| visitor.slot(name, slot));
    }
}

/// `w` and `tied` are one slot of a weight `[2, 3]`; `x` is an input, `y` an output.
fn empty() -> Slots {
    let weight = QuantizerSlot::weight(&[2, 3]);
    Slots(vec![
        ("w", weight.clone()),
        ("x", QuantizerSlot::input()),
        ("tied", weight),
        ("y", QuantizerSlot::output()),
    ])
}

/// The same with a quantizer per channel in `w`, an asymmetric one in `x`, a dynamic one in `y`.
fn filled() -> Slots {
    let model = empty();
    let config = LinearQuantizerConfig::new(4).with_granularity(Granularity::per_channel(0));
    let weight = LinearQuantizer::new(config).unwrap();
    weight.set_quantization_range(&[-1.0, -2.0], &[1.0, 0.5]).unwrap();
    let input = LinearQuantizer::new(LinearQuantizerConfig::new(8).asymmetric()).unwrap();
    input.set_quantization_range(&[-0.3], &[2.9]).unwrap();
    let output = DynamicLinearQuantizer::new(DynamicLinearQuantizerConfig::new(8)).unwrap();
    model.0[0].1.replace(Arc::new(weight));
    model.0[1].1.replace(Arc::new(input));
    model.0[3].1.replace(Arc::new(output));
    model
}

fn saved(model: &Slots) -> TempDir {
    let folder = TempDir::new().unwrap();
    let rules = HashMap::from([("w".to_owned(), "weights".to_owned())]);
    let info = StateInfo { model: "m".into(), model_sha256: None, rules };
    save_quantization_state(model, folder.path(), &info, false).unwrap();
    folder
}

fn load(model: &Slots, folder: &Path) -> Result<StateInfo, Error> {
    load_quantization_state(model, folder, Some("m"), InitializeOptions::default())
}

fn states(model: &Slots) -> Vec<Option<SavedQuantizer>> {
    model.0.iter().map(|(_, slot)| slot.quantizer().to_saved()).collect()
}

#[test]
fn what_was_saved_is_loaded_bit_by_bit() {
    let (before, after) = (filled(), empty());
    let info = load(&after, saved(&before).path()).unwrap();
    assert_eq!(states(&before), states(&after));
    assert_eq!(info.rules["w"], "weights");
}

/// Changes the manifest, loads it, and returns the error. No slot has changed then.
#[track_caller]
fn refused(change: impl FnOnce(&mut Value)) -> (ErrorKind, String) {
    let folder = saved(&filled());
    let path = folder.path().join(MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&path, manifest.to_string()).unwrap();
    let model = empty();
    let error = load(&model, folder.path()).unwrap_err();
    assert!(model.0.iter().all(|(_, slot)| slot.is_stub()), "{error}");
    (error.kind(), error.to_string())
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Value), expected: &str) {
        let (kind, message) = refused(change);
        assert_eq!(kind, ErrorKind::State, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    check(|m| m["version"] = json!(3), "version 3 of the format, expected 1 to 2");
    check(|m| m["version"] = json!(0), "version 0 of the format, expected 1 to 2");
    check(|m| m["model"] = json!("n"), "for model `n`, expected `m`");
    check(|m| m["slots"][1]["names"] = json!(["z"]), "tensor `z.scale` is missing");
    check(|m| m["slots"][2]["names"] = json!(["z"]), "the model has no slot `z`");
    check(|m| m["slots"][2]["names"] = json!([]), "a slot has no name");
    check(|m| m["slots"][0]["names"] = json!(["w", "x"]), "shared with [\"x\"]");
    check(|m| m["slots"][1]["names"] = json!(["x", "y"]), "shared with [\"y\"]");
    let of = |owner: &str| {
        let owner = owner.to_owned();
        move |m: &mut Value| {
            m["version"] = json!(2);
            let slot = m["slots"][2].as_object_mut().unwrap();
            slot.remove("quantizer");
            slot.insert("quantizer_of".to_owned(), json!(owner));
        }
    };
    check(of("z"), "`y` holds the quantizer of `z`, which the state does not hold");
    check(of("y"), "`y` holds the quantizer of `y`, which the state does not hold");
    check(
        |m| {
            of("x")(m);
            m["version"] = json!(1);
        },
        "`y`: version 1 of the format has no `quantizer_of`",
    );
    check(
        |m| m["slots"][2]["quantizer_of"] = json!("x"),
        "`y` has both `quantizer` and `quantizer_of`",
    );
    check(
        |m| {
            m["slots"][2].as_object_mut().unwrap().remove("quantizer");
        },
        "`y` has neither `quantizer` nor `quantizer_of`",
    );
    check(|m| m["slots"][0]["quantizer"]["has_offset"] = json!(true), "`w.offset` is missing");
    check(|m| m["slots"][1]["quantizer"]["is_set"] = json!(false), "unexpected tensor `x.scale`");
    check(|m| m["slots"][0]["quantizer"]["class"] = json!("Other"), "unknown variant `Other`");
    check(|m| m["slots"][0]["quantizer"]["settings"]["bits"] = json!(3), "unknown field `bits`");
    check(|m| m["slots"][0]["quantizer"]["settings"]["num_bits"] = json!(99), "num_bits");
    let granularity = json!({ "per_channel": { "axes": [1] } });
    check(
        |m| m["slots"][0]["quantizer"]["settings"]["granularity"] = granularity,
        "`w`: PerChannel(channel=1) needs 3 scales, found 2",
    );
    let granularity = json!({ "per_block": { "dims": [1], "sizes": [2] } });
    check(
        |m| m["slots"][0]["quantizer"]["settings"]["granularity"] = granularity,
        "2 does not divide 3",
    );
    check(
        |m| {
            let again = m["slots"][2].clone();
            m["slots"].as_array_mut().unwrap().push(again);
        },
        "slot `y` occurs twice",
    );
}

#[test]
fn parameters_that_make_no_grid_are_refused() {
    for (scale, place) in [(f32::NAN, "x.scale"), (0.0, "x.scale"), (f32::INFINITY, "x.offset")] {
        let folder = saved(&filled());
        let path = folder.path().join(TENSORS);
        let mut tensors = read_tensors(&path, &fs::read(&path).unwrap()).unwrap();
        tensors.get_mut(place).unwrap()[0] = scale;
        fs::write(&path, tensor_bytes(&tensors).unwrap()).unwrap();
        let error = load(&empty(), folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains("`x`"), "{error}");
    }
}

#[test]
fn a_cut_file_is_an_error() {
    for file in [MANIFEST, TENSORS] {
        let folder = saved(&filled());
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        // The last byte of the manifest is a newline, which nothing needs.
        for len in (0..whole.len() - 1).rev().step_by(11) {
            fs::write(&path, &whole[..len]).unwrap();
            let error = load(&empty(), folder.path()).expect_err("a part is not the whole");
            assert_eq!(error.kind(), ErrorKind::State);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(load(&empty(), folder.path()).unwrap_err().kind(), ErrorKind::Io);
    }
    // A header of 2^60 bytes is not believed.
    let folder = saved(&filled());
    let mut bytes = (1u64 << 60).to_le_bytes().to_vec();
    bytes.extend(b"{}");
    fs::write(folder.path().join(TENSORS), bytes).unwrap();
    assert_eq!(load(&empty(), folder.path()).unwrap_err().kind(), ErrorKind::State);
}

#[test]
fn policies_say_what_becomes_of_quantizers_that_are_there() {
    let folder = saved(&filled());
    let with = |overwrite_policy| {
        let model = filled();
        model.0[0]
            .1
            .replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(2)).unwrap()));
        let options = InitializeOptions { overwrite_policy, ..InitializeOptions::default() };
        let result = load_quantization_state(&model, folder.path(), None, options);
        (result.map(drop).map_err(|error| error.kind()), model.0[0].1.quantizer().num_bits())
    };
    assert_eq!(with(OverwritePolicy::Error), (Err(ErrorKind::AlreadySet), Some(2)));
    assert_eq!(with(OverwritePolicy::Skip), (Ok(()), Some(2)));
    assert_eq!(with(OverwritePolicy::Overwrite), (Ok(()), Some(4)));
}

#[test]
fn what_cannot_be_loaded_again_is_not_saved() {
    let folder = TempDir::new().unwrap();
    let unset = || {
        let slot = QuantizerSlot::input();
        slot.replace(Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap()));
        slot
    };
    let model = Slots(vec![("a", unset()), ("b", unset())]);
    let save = |model: &Slots, allow_unset| {
        save_quantization_state(model, folder.path(), &StateInfo::default(), allow_unset)
    };
    let message = save(&model, false).unwrap_err().to_string();
    assert!(message.contains("`a`") && message.contains("`b`"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    save(&model, true).unwrap();
    let same_name = Slots(vec![("a", unset()), ("a", unset())]);
    let error = save(&same_name, true).unwrap_err();
    assert_eq!(error.to_string(), "`a` is the name of two slots, which could not be told apart");
}

#[test]
fn tensors_of_another_save_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    for (folder, max) in [(&folder, 1.0), (&other, 2.0)] {
        let slot = QuantizerSlot::input();
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
        quantizer.set_quantization_range(&[-1.0], &[max]).unwrap();
        slot.replace(Arc::new(quantizer));
        save_quantization_state(
            &Slots(vec![("x", slot)]),
            folder.path(),
            &StateInfo::default(),
            false,
        )
        .unwrap();
    }
    std::fs::copy(other.path().join(TENSORS), folder.path().join(TENSORS)).unwrap();
    let slot = QuantizerSlot::input();
    let error = load_quantization_state(
        &Slots(vec![("x", slot.clone())]),
        folder.path(),
        None,
        InitializeOptions::default(),
    )
    .unwrap_err();
    assert!(error.to_string().ends_with("the two belong together"), "{error}");
    assert!(slot.is_stub());
}

#[test]
fn a_quantizer_in_two_slots_is_stored_once_and_shared_again() {
    let slots = || {
        let slot = QuantizerSlot::input;
        Slots(vec![("b", slot()), ("a", slot()), ("alone", slot())])
    };
    let model = slots();
    let quantizer = || {
        let quantizer = LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap();
        quantizer.set_quantization_range(&[-1.0], &[1.0]).unwrap();
        Arc::new(quantizer)
    };
    let shared = quantizer();
    model.0[0].1.replace(Arc::clone(&shared) as Arc<dyn Quantizer>);
    model.0[1].1.replace(shared);
    model.0[2].1.replace(quantizer());
    let folder = saved(&model);
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder.path().join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest["version"], json!(2));
    assert_eq!(manifest["slots"][1]["quantizer_of"], json!("b"));
    let path = folder.path().join(TENSORS);
    let tensors = read_tensors(&path, &fs::read(&path).unwrap()).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["alone.scale", "b.scale"]);

    let restored = slots();
    load(&restored, folder.path()).unwrap();
    let held: Vec<_> = restored.0.iter().map(|(_, slot)| slot.quantizer()).collect();
    assert!(Arc::ptr_eq(&held[0], &held[1]) && !Arc::ptr_eq(&held[0], &held[2]));
    assert_eq!(states(&model), states(&restored));
    assert_eq!(restored.0[1].1.label().as_deref(), Some("a"));

    // A slot that is kept does not take the shared quantizer; the other does.
    let other = Slots(vec![
        ("b", QuantizerSlot::input()),
        ("a", QuantizerSlot::input()),
        ("alone", QuantizerSlot::input()),
        ("more", QuantizerSlot::input()),
    ]);
    other.0[1].1.replace(quantizer());
    let options =
        InitializeOptions { overwrite_policy: OverwritePolicy::Skip, ..Default::default() };
    let kept = other.0[1].1.quantizer();
    load_quantization_state(&other, folder.path(), None, options).unwrap();
    assert!(other.0[1].1.holds(&kept) && !other.0[0].1.is_stub());
}

#[test]
fn what_shares_nothing_is_version_1() {
    let folder = saved(&filled());
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder.path().join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest["version"], json!(1));
}

#[test]
fn a_shared_quantizer_without_a_range_is_named_once() {
    let quantizer: Arc<dyn Quantizer> =
        Arc::new(LinearQuantizer::new(LinearQuantizerConfig::new(8)).unwrap());
    let model = Slots(vec![("a", QuantizerSlot::input()), ("b", QuantizerSlot::input())]);
    model.0.iter().for_each(|(_, slot)| drop(slot.replace(Arc::clone(&quantizer))));
    let folder = TempDir::new().unwrap();
    let save = |allow_unset| {
        save_quantization_state(&model, folder.path(), &StateInfo::default(), allow_unset)
    };
    let message = save(false).unwrap_err().to_string();
    assert!(message.contains("`a`") && !message.contains("`b`"), "{message}");
    save(true).unwrap();
    let model = Slots(vec![("a", QuantizerSlot::input()), ("b", QuantizerSlot::input())]);
    load_quantization_state(&model, folder.path(), None, InitializeOptions::default()).unwrap();
    assert!(model.0[0].1.holds(&model.0[1].1.quantizer()));
}
