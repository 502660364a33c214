//! Weights of blocks, rounded together.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fastforward::ErrorKind;
use fastforward::algorithms::{AlgorithmReport, Block, BlockOptions, Target, reconstruct_blocks};
use fastforward::module::Module;
use fastforward::nn::{Layer, Linear, ReLU, Sequential};
use fastforward::quantization::find_parameter_quantizers;
use fastforward::quantization::quant_init::model_context;
use fastforward::quantization::quantizer::default_tags;
use fastforward::tensor::Result;
use ff_kernels::{AdaRoundOptions, Affine, IntegerGrid, MomentSums, Tiling, adaround};

use crate::common::*;

const SHORT: BlockOptions = BlockOptions {
    iterations: 300,
    learning_rate: 0.03,
    regularizer: 0.5,
    beta: (20.0, 2.0),
    warm_up: 0.2,
};

fn reconstruct(
    model: &Sequential,
    blocks: &[Block],
    data: &[Tensor],
    options: &BlockOptions,
) -> Result<AlgorithmReport> {
    let mut reports = reconstruct_after(model, &[], blocks, data, options)?;
    assert_eq!(reports.len(), 1);
    Ok(reports.remove(0))
}

fn reconstruct_after(
    model: &Sequential,
    first: &[Target],
    blocks: &[Block],
    data: &[Tensor],
    options: &BlockOptions,
) -> Result<Vec<AlgorithmReport>> {
    let _lenient = fastforward::flags::strict_quantization(false);
    let forward = |model: &Sequential, x: &&Tensor| model.forward_tensor(x);
    reconstruct_blocks(model, first, blocks, || data.iter().map(Ok), forward, options)
}

fn block(name: &str, modules: &[&str]) -> Block {
    Block { name: name.to_owned(), modules: modules.iter().map(|&one| one.to_owned()).collect() }
}

#[test]
fn the_report_tells_the_truth_and_weights_are_on_their_grids() {
    let (float, data, model) = (network(), batches(3), network());
    // Integer products and floats differ in the last bits.
    let _simulated = fastforward::flags::integer_execution_mode(false);
    quantize(&model, &configuration(2, true, ""), &data);
    let before = share(&outputs(&float, &data), &outputs(&model, &data));
    let query = model_context(&model).query("*").unwrap();
    let whole = Block::together("whole", &model, &query).unwrap();
    let report = reconstruct(&model, &[whole], &data, &SHORT).unwrap();
    let after = share(&outputs(&float, &data), &outputs(&model, &data));
    let change = &report.changes[0];
    assert_eq!((change.name.as_str(), report.algorithm), ("whole", "block_reconstruction"));
    for (reported, measured) in [(change.before, before), (change.after.unwrap(), after)] {
        assert!((reported - measured).abs() < 1e-4 * measured, "{reported} {measured}");
    }
    assert!(after < 0.5 * before, "{after} {before}");
    // A value on the grid goes through its quantizer as it is.
    let weights = find_parameter_quantizers(&model, default_tags::weight()).unwrap();
    for one in weights {
        let quantized = one.parameter.quantized(&one.slot).unwrap().dequantize().unwrap();
        assert_eq!(numbers(&quantized), numbers(&one.parameter.tensor()), "{}", one.slot_name);
    }
}

#[test]
fn blocks_go_on_from_what_layers_found() {
    let (float, data) = (network(), batches(3));
    let _simulated = fastforward::flags::integer_execution_mode(false);
    let algorithms = "
[[algorithm]]
type = \"bias_correction\"
[[algorithm]]
type = \"activation_weighted_mse\"
[[algorithm]]
type = \"adaround\"
";
    let error = |blocks: &[Block]| {
        let model = network();
        let targets = quantize(&model, &configuration(2, true, algorithms), &data);
        let reports = match blocks {
            [] => run(&model, &targets, &data).unwrap(),
            blocks => reconstruct_after(&model, &targets, blocks, &data, &SHORT).unwrap(),
        };
        (share(&outputs(&float, &data), &outputs(&model, &data)), reports)
    };
    let (by_layer, of_layers) = error(&[]);
    let blocks = [block("body", &["0", "1", "2", "3"]), block("head", &["5", "6", "7"])];
    let (by_block, reports) = error(&blocks);
    // What is best for the outputs of blocks is about as good for the output of the network.
    assert!(by_block < 1.1 * by_layer, "{by_block} {by_layer}");
    // Layers first, then blocks, then biases; each as a report of its own.
    assert_eq!(reports[1].changes[..2], of_layers[1].changes[..2]);
    assert_eq!(reports[2].changes[..2], of_layers[2].changes[..2]);
    assert_eq!(reports[2].changes.len(), 4);
    let change = &reports[3].changes[0];
    assert!(change.after.unwrap() < change.before, "{change:?}");
    assert!(reports[0].changes.iter().all(|one| one.after.unwrap() < 0.1 * one.before));
}

#[test]
fn blocks_go_in_the_order_of_the_forward() {
    let (model, data) = (network(), batches(2));
    quantize(&model, &configuration(2, true, ""), &data);
    let blocks = [block("head", &["5", "6", "7"]), block("body", &["0", "1", "2", "3"])];
    let report = reconstruct(&model, &blocks, &data, &SHORT).unwrap();
    let names: Vec<&str> = report.changes.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["body", "head"]);
    assert!(report.changes.iter().all(|one| one.after.unwrap() < 0.8 * one.before), "{report}");
    // The same bytes again.
    let again = network();
    quantize(&again, &configuration(2, true, ""), &data);
    assert_eq!(reconstruct(&again, &blocks, &data, &SHORT).unwrap(), report);
    assert_eq!(weights(&again), weights(&model));
}

/// One linear layer has its gradient in closed form: the kernel for layers is the reference.
#[test]
fn a_block_of_one_layer_is_adaround() {
    let (x, weight) = (noise(&[64, 12], 1), noise(&[8, 12], 2));
    // Inputs that go together.
    let x = (x.clone() + x.narrow(1, 0, 1).unwrap().broadcast_as((64, 12)).unwrap() * 2.0).unwrap();
    let model = Sequential::new().add(Linear::from_tensors(weight.clone(), None).unwrap());
    let rule = "schema_version = 1\n[[rule]]\nquery = \"**/[quantizer:parameter/weight]\"\n\
                quantizer = { type = \"linear\", num_bits = 3 }\n";
    let config =
        fastforward::config::QuantConfigFile::parse(rule, "quant.toml", ".".as_ref()).unwrap();
    quantize(&model, &config, std::slice::from_ref(&x));
    let slot = fastforward::module::named_slots(&model)
        .into_iter()
        .find(|one| one.name() == "0.weight_quantizer")
        .unwrap();
    let range = slot.slot.quantizer().as_range_settable().unwrap().quantization_range().unwrap();
    let scale = (range.1[0] - range.0[0]) / 7.0;
    let mut sums = MomentSums::new(12);
    sums.add(&numbers(&x)).unwrap();
    let kernel = adaround(
        &numbers(&weight),
        &sums.finish(),
        &Tiling::whole(&[8, 12]).unwrap(),
        Affine { scale: &[scale], offset: None },
        IntegerGrid::signed(3).unwrap(),
        &AdaRoundOptions { descent: false, ..AdaRoundOptions::default() },
    )
    .unwrap();
    let options = BlockOptions::default();
    let report = reconstruct(&model, &[block("0", &["0"])], &[x], &options).unwrap();
    let change = &report.changes[0];
    let (found, expected) =
        (change.after.unwrap() / change.before, kernel.loss_after() / kernel.loss_before());
    assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
}

#[test]
fn what_is_no_better_is_not_taken() {
    let (model, data) = (network(), batches(2));
    quantize(&model, &configuration(4, true, ""), &data);
    let before = weights(&model);
    let options = BlockOptions { iterations: 1, learning_rate: 1e-6, ..SHORT };
    let report = reconstruct(&model, &[block("0", &["0"])], &data, &options).unwrap();
    assert_eq!(report.changes[0].after, Some(report.changes[0].before));
    assert_eq!(weights(&model), before);
}

#[test]
fn trainable_parameters_stay_their_variables() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = Sequential::new()
        .add(Linear::new(6, 5, true, vb.pp("a")).unwrap())
        .add(ReLU::new())
        .add(Linear::new(5, 4, true, vb.pp("b")).unwrap());
    let data = [noise(&[32, 6], 3)];
    quantize(&model, &configuration(2, true, ""), &data);
    let ids = |varmap: &VarMap| {
        let mut ids: Vec<_> =
            varmap.all_vars().iter().map(|var| format!("{:?}", var.id())).collect();
        ids.sort();
        ids
    };
    let (before, held) = (weights(&model), ids(&varmap));
    reconstruct(&model, &[block("b", &["2"])], &data, &SHORT).unwrap();
    assert_eq!(ids(&varmap), held);
    let parameters = fastforward::module::named_shared_parameters(&model);
    for entry in parameters {
        let parameter = entry.parameter.downcast_ref::<fastforward::nn::Param>().unwrap();
        assert!(
            parameter
                .var()
                .is_some_and(|var| varmap.all_vars().iter().any(|one| one.id() == var.id()))
        );
    }
    let after = weights(&model);
    let first = 6 * 5 + 5;
    assert_eq!(after[..first], before[..first]); // the layer that is in no block
    assert_ne!(after, before);
}

#[test]
fn what_cannot_be_reconstructed_is_refused() {
    let (model, data) = (network(), batches(1));
    quantize(&model, &configuration(2, true, ""), &data);
    let before = weights(&model);
    let blocks = [block("a", &["0", "9"]), block("b", &["0", "1"]), block("c", &["1"])];
    let error = reconstruct(&model, &blocks, &data, &SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rule);
    for expected in [
        "`a`: there is no module `9`",
        "`b` has modules in common with `a`",
        "`c` has modules in common with `b`",
        "`c` has no weight to round: none of its weights has a quantizer",
    ] {
        assert!(error.to_string().contains(expected), "`{expected}` is missing in\n{error}");
    }
    let error = reconstruct(&model, &[], &data, &SHORT).unwrap_err();
    assert_eq!(error.to_string(), "there is no block");
    let good = [block("a", &["0"])];
    let error = reconstruct(&model, &good, &[], &SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
    let wrong = BlockOptions { iterations: 0, warm_up: 2.0, ..SHORT };
    let error = reconstruct(&model, &good, &data, &wrong).unwrap_err();
    assert!(
        error.to_string().contains("`iterations` is 0")
            && error.to_string().contains("`warm_up` is 2")
    );
    let nan = (&data[0] * f64::NAN).unwrap();
    let error = reconstruct(&model, &good, &[nan], &SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let query = model_context(&model).query("nothing").unwrap();
    assert!(
        Block::each(&model, &query).unwrap_err().to_string().contains("`nothing` matches nothing")
    );
    assert_eq!(weights(&model), before);
    let _: &dyn Module = &model;
}
