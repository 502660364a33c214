//! Packed weights as another program reads them: from the definition of the layout, without a line of ours.

use fastforward_core::ArrayView;
use fastforward_core::quantization::quantizer::RangeSettable;
use fastforward_core::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, Quantizer,
};
use fastforward_core::range_setting::tile_ranges;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::bench::Bench;

fn i32s(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// `(code - zero point) * scale`: codes packed along the columns, zero points along the rows, both raised by half of the grid,
/// the first in the lowest bits of a word.
fn unpack(file: &SafeTensors<'_>, name: &str, bits: usize) -> Vec<f32> {
    let tensor = |what: &str| file.tensor(&format!("{name}_{what}"));
    let shape = tensor("shape").unwrap();
    assert_eq!((shape.dtype(), shape.shape()), (Dtype::I64, &[2][..]));
    let sizes = i32s(shape.data());
    let (rows, columns) = (sizes[0] as usize, sizes[2] as usize);
    let (per_word, half) = (32 / bits, 1 << (bits - 1));
    let field = |word: i32, at: usize| ((word as u32) >> (at * bits)) & ((1u32 << bits) - 1);

    let packed = tensor("packed").unwrap();
    let words_per_row = columns.div_ceil(per_word);
    assert_eq!((packed.dtype(), packed.shape()), (Dtype::I32, &[rows, words_per_row][..]));
    let scale = tensor("scale").unwrap();
    assert_eq!(scale.dtype(), Dtype::F32);
    let (scale_rows, groups) = match *scale.shape() {
        [1] => (1, 1),
        [scale_rows, groups] => (scale_rows, groups),
        ref shape => panic!("scales of shape {shape:?}"),
    };
    let zero_point = tensor("zero_point").ok().map(|tensor| {
        assert_eq!(tensor.shape(), [scale_rows.div_ceil(per_word), groups]);
        i32s(tensor.data())
    });
    let (words, scale) = (i32s(packed.data()), f32s(scale.data()));
    let mut floats = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let word = words[row * words_per_row + column / per_word];
            let code = field(word, column % per_word) as i32 - half;
            let (scale_row, group) = (row.min(scale_rows - 1), column / (columns / groups));
            let zero = zero_point.as_ref().map_or(0, |words| {
                let word = words[scale_row / per_word * groups + group];
                field(word, scale_row % per_word) as i32 - half
            });
            floats.push((code - zero) as f32 * scale[scale_row * groups + group]);
        }
    }
    floats
}

/// A file of one weight, quantized by the program, unpacked, and compared with the quantizer on the data itself.
#[track_caller]
fn check(columns: usize, in_rules: &str, granularity: &Granularity) {
    const ROWS: usize = 11;
    let bench = Bench::new();
    let x: Vec<f32> =
        (0..ROWS * columns).map(|at| ((at * 7919 % 1009) as f32 - 300.0) / 97.0).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![ROWS, columns], &bytes).unwrap();
    bench.write("model.safetensors", serialize([("proj.weight", view)], None).unwrap());
    for (num_bits, symmetric) in [2, 4, 8].into_iter().flat_map(|b| [(b, true), (b, false)]) {
        bench.write(
            "rules.toml",
            format!(
                "schema_version = 1\n\n[[rule]]\nquery = \"**/[quantizer:parameter/weight]\"\nquantizer = {{ type = \
                 \"linear\", num_bits = {num_bits}, symmetric = {symmetric}, granularity = {in_rules} }}\nrange = {{ \
                 estimator = \"running_minmax\" }}\n"
            ),
        );
        let args = ["quantize", "model.safetensors", "--config", "rules.toml", "--out", "out"];
        let transcript = bench.transcript(&args);
        assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");

        let config = LinearQuantizerConfig::new(num_bits).with_granularity(granularity.clone());
        let config = if symmetric { config } else { config.asymmetric() };
        let quantizer = LinearQuantizer::new(config).unwrap();
        let shape = [ROWS, columns];
        let view = ArrayView::new(&x, &shape).unwrap();
        let range = tile_ranges(view, granularity).unwrap();
        quantizer.set_quantization_range(&range.min, &range.max).unwrap();
        let expected = quantizer.forward(view).unwrap().into_array(view).data;

        let file = std::fs::read(bench.path("out/model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(file.tensor("proj.weight_zero_point").is_err(), symmetric);
        let found = unpack(&file, "proj.weight", num_bits as usize);
        assert_eq!(found, expected, "{num_bits} bits, symmetric: {symmetric}, {in_rules}");
    }
}

#[test]
fn a_scale_for_all_unpacks_to_the_simulation() {
    check(37, "\"per_tensor\"", &Granularity::PerTensor);
}

#[test]
fn scales_of_channels_unpack_to_the_simulation() {
    check(37, "\"per_output_channel\"", &Granularity::per_channel(0));
}

#[test]
fn scales_of_blocks_unpack_to_the_simulation() {
    let blocks = "{ per_block = { dims = [1], sizes = [12], per_channel_dims = [0] } }";
    check(48, blocks, &Granularity::per_block(&[1], &[12], &[0]));
}
