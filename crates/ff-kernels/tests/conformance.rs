//! The golden cases at the level of slices: parameters, codes and gradients bit by bit, as
//! `conformance/golden/README.md` defines them. `FF_GOLDEN_DIR` names another folder to read.
//!
//! Where we differ on purpose, the difference is described by a property of the case and asserted
//! to be what it is said to be.

use std::path::PathBuf;

use ff_kernels::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn golden_dir() -> PathBuf {
    std::env::var_os("FF_GOLDEN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/golden"))
    })
}

struct Family {
    json: Value,
    tensors: Vec<u8>,
}

impl Family {
    fn read(name: &str) -> Self {
        let path = golden_dir().join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let json: Value = serde_json::from_str(&text).unwrap();
        let tensors = match json["tensor_file"].as_str() {
            Some(file) => std::fs::read(golden_dir().join(file)).unwrap(),
            None => Vec::new(),
        };
        assert_eq!(json["cases"].as_array().unwrap().len() as u64, json["count"].as_u64().unwrap());
        Family { json, tensors }
    }

    fn cases(&self) -> &[Value] {
        self.json["cases"].as_array().unwrap()
    }
}

/// The tensors of one case.
struct Tensors<'a> {
    file: &'a SafeTensors<'a>,
    id: &'a str,
}

impl Tensors<'_> {
    fn words(&self, name: &str, dtype: Dtype) -> Vec<[u8; 4]> {
        let view = self.file.tensor(&format!("{}/{name}", self.id)).unwrap();
        assert_eq!(view.dtype(), dtype);
        view.data().as_chunks::<4>().0.to_vec()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.words(name, Dtype::F32).into_iter().map(f32::from_le_bytes).collect()
    }

    fn i32(&self, name: &str) -> Vec<i32> {
        self.words(name, Dtype::I32).into_iter().map(i32::from_le_bytes).collect()
    }
}

fn id(case: &Value) -> &str {
    case["id"].as_str().unwrap()
}

fn usizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn flag(case: &Value, name: &str) -> bool {
    case[name].as_bool().unwrap()
}

/// Numbers, or the strings that stand for what JSON cannot say; `null` is `None`.
fn floats(value: &Value) -> Option<Vec<f32>> {
    let one = |v: &Value| match v.as_str() {
        Some(text) => text.parse().unwrap(),
        None => v.as_f64().unwrap() as f32,
    };
    Some(value.as_array()?.iter().map(one).collect())
}

fn grid(case: &Value) -> IntegerGrid {
    IntegerGrid::signed(case["num_bits"].as_u64().unwrap() as u32).unwrap()
}

fn tiling(case: &Value) -> Tiling {
    Tiling::new(&usizes(&case["shape"]), &usizes(&case["tile_size"])).unwrap()
}

fn options(case: &Value) -> RangeOptions {
    RangeOptions {
        symmetric: flag(case, "symmetric"),
        one_sided: if flag(case, "allow_one_sided") { OneSided::Global } else { OneSided::Never },
        ..Default::default()
    }
}

/// The same numbers; zeros of either sign are the same.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

#[test]
fn conformance_affine() {
    let family = Family::read("affine");
    let file = SafeTensors::deserialize(&family.tensors).unwrap();
    for case in family.cases() {
        let id = id(case);
        let tensors = Tensors { file: &file, id };
        let (tiling, grid) = (tiling(case), grid(case));
        assert_eq!(tiling.num_tiles() as u64, case["num_params"].as_u64().unwrap(), "{id}");
        let (x, scale) = (tensors.f32("x"), tensors.f32("scale"));
        let offset = flag(case, "has_offset").then(|| tensors.f32("offset"));
        let affine = Affine { scale: &scale, offset: offset.as_deref() };

        let mut codes = vec![0i32; x.len()];
        quantize(&x, &tiling, affine, grid, &mut codes).unwrap();
        assert_eq!(codes, tensors.i32("q"), "{id}");
        let expected = tensors.f32("deq");
        let mut values = vec![0.0; x.len()];
        dequantize(&codes, &tiling, affine, &mut values).unwrap();
        assert!(same(&values, &expected), "{id}: dequantized");
        fake_quantize(&x, &tiling, affine, grid, &mut values).unwrap();
        assert!(same(&values, &expected), "{id}: fake-quantized");
        let mut small = vec![0i16; x.len()];
        quantize(&x, &tiling, affine, grid, &mut small).unwrap();
        assert!(small.iter().zip(&codes).all(|(&a, &b)| i32::from(a) == b), "{id}: as i16");

        let g = tensors.f32("grad_out");
        let mut grad_x = vec![0.0; x.len()];
        let grads = fake_quantize_backward(&x, &tiling, affine, grid, &g, &mut grad_x).unwrap();
        assert!(same(&grad_x, &tensors.f32("grad_x")), "{id}: grad_x");
        let reach = tensors.f32("grad_scale_abs");
        for (tile, expected) in tensors.f32("grad_scale").into_iter().enumerate() {
            let got = grads.scale[tile];
            assert!((got - expected).abs() <= 2e-6 * reach[tile], "{id}: {got} {expected}");
        }
        assert_eq!(grads.offset.is_some(), offset.is_some(), "{id}");
        for (tile, got) in grads.offset.iter().flatten().enumerate() {
            let expected = tensors.f32("grad_offset")[tile];
            let clipped = tiling.tile_elements(tile).filter(|e| grad_x[e.output] == 0.0);
            let reach: f64 = clipped.map(|e| f64::from(scale[tile] * g[e.output]).abs()).sum();
            assert!(f64::from((got - expected).abs()) <= 2e-6 * reach, "{id}: {got} {expected}");
        }
    }
}

#[test]
fn conformance_affine_misuse() {
    // Granularities are resolved above this crate; what reaches it as a tile is judged here.
    for case in Family::read("affine").json["misuse"].as_array().unwrap() {
        let shape = usizes(&case["shape"]);
        let granularity = &case["granularity"];
        let (tile, scales) = if let Some(ok) = case.get("ok") {
            let n = ok["num_scales"].as_u64().unwrap() as usize;
            let n = granularity["num_scales"].as_u64().map_or(n, |n| n as usize);
            (usizes(&ok["tile_size"]), n)
        } else if granularity["kind"] == "per_tile" {
            (usizes(&granularity["tile_shape"]), 1)
        } else if let Some(n) = granularity["num_scales"].as_u64() {
            let axis = granularity["axes"][0].as_u64().unwrap() as usize;
            let mut tile = shape.clone();
            tile[axis] = 1;
            (tile, n as usize)
        } else {
            continue;
        };
        let run = || {
            let tiling = Tiling::new(&shape, &tile)?;
            let scale = vec![0.5; scales];
            let mut codes = vec![0i8; tiling.len()];
            let affine = Affine { scale: &scale, offset: None };
            quantize(&vec![1.0; tiling.len()], &tiling, affine, grid(case), &mut codes)?;
            Ok::<_, KernelError>(codes[0])
        };
        match (run(), case.get("ok")) {
            (Ok(code), Some(ok)) => assert_eq!(f64::from(code), ok["q_first"].as_f64().unwrap()),
            (Err(_), None) => {}
            (got, _) => panic!("{got:?} for {case}"),
        }
    }
}

#[test]
fn conformance_dynamic() {
    let family = Family::read("dynamic");
    let file = SafeTensors::deserialize(&family.tensors).unwrap();
    for case in family.cases() {
        let id = id(case);
        let tensors = Tensors { file: &file, id };
        let (tiling, grid, options) = (tiling(case), grid(case), options(case));
        let x = tensors.f32("x");
        let mut codes = vec![0i32; x.len()];
        let p = dynamic_quantize(&x, &tiling, grid, &options, &mut codes).unwrap();
        assert!(same(p.offset.as_ref().unwrap(), &tensors.f32("offset")), "{id}");
        let expected = tensors.f32("scale");
        for (tile, (&got, &expected)) in p.scale.iter().zip(&expected).enumerate() {
            let zeros = tiling.tile_elements(tile).all(|e| x[e.input] == 0.0);
            if options.symmetric && p.offset.as_ref().unwrap()[tile] == 0.0 && zeros {
                // Difference: constant zero, two-sided. The oracle's scale is 0 and its result NaN,
                // ours is the scale floor and its result 0.
                assert!(expected == 0.0 && got == f32::EPSILON, "{id}: {got} {expected}");
                assert!(tiling.tile_elements(tile).all(|e| codes[e.output] == 0), "{id}");
            } else {
                assert_eq!(got, expected, "{id}");
            }
        }
        if !flag(case, "finite") {
            assert!(expected.contains(&0.0), "{id}");
            continue;
        }
        assert_eq!(codes, tensors.i32("q"), "{id}");
        let mut values = vec![0.0; x.len()];
        dynamic_fake_quantize(&x, &tiling, grid, &options, &mut values).unwrap();
        assert!(same(&values, &tensors.f32("deq")), "{id}");
    }
}

#[test]
fn conformance_ranges() {
    for case in Family::read("ranges").cases() {
        let id = id(case);
        let (grid, options) = (grid(case), options(case));
        let (min, max) = (floats(&case["min"]).unwrap(), floats(&case["max"]).unwrap());
        let scale = floats(&case["scale"]).unwrap();
        let offset = floats(&case["offset"]);

        // To the letter on request.
        let reference = RangeOptions { degenerate: Degenerate::Reference, ..options };
        let p = parameters_for_range(&min, &max, grid, &reference).unwrap();
        assert!(same(&p.scale, &scale), "{id}: {:?} {scale:?}", p.scale);
        assert_eq!(p.offset.is_some(), offset.is_some(), "{id}");
        if let (Some(a), Some(b)) = (&p.offset, &offset) {
            assert!(same(a, b), "{id}: {a:?} {b:?}");
        }
        let (lo, hi) = quantization_range(p.affine(), grid).unwrap();
        assert!(same(&lo, &floats(&case["range_min"]).unwrap()), "{id}");
        assert!(same(&hi, &floats(&case["range_max"]).unwrap()), "{id}");
        // What a quantizer stores: zeros where one-sided parameters were allowed but not used.
        let stored = p.offset.clone().or_else(|| {
            (options.one_sided != OneSided::Never || !options.symmetric)
                .then(|| vec![0.0; min.len()])
        });
        assert_eq!(stored.is_some(), !case["quantizer_offset"].is_null(), "{id}");
        if let Some(stored) = stored {
            assert!(same(&stored, &floats(&case["quantizer_offset"]).unwrap()), "{id}");
        }
        assert!(same(&p.scale, &floats(&case["quantizer_scale"]).unwrap()), "{id}");

        // By default, differences where the oracle's result cannot be used, and only there.
        let ours = parameters_for_range(&min, &max, grid, &options).unwrap();
        for tile in 0..min.len() {
            if scale[tile] == 0.0 {
                assert_eq!(ours.scale[tile], options.scale_floor, "{id}: zero scale");
            } else if scale[tile].is_infinite() {
                let exact = (f64::from(max[tile]) - f64::from(min[tile])) / f64::from(grid.steps());
                assert!((f64::from(ours.scale[tile]) / exact - 1.0).abs() < 1e-6, "{id}: too wide");
            } else {
                assert_eq!(ours.scale[tile], scale[tile], "{id}");
                assert_eq!(
                    ours.offset.as_ref().map(|o| o[tile]),
                    p.offset.as_ref().map(|o| o[tile]),
                    "{id}"
                );
            }
        }
    }
}

#[test]
fn conformance_min_error() {
    let family = Family::read("estimators");
    let file = SafeTensors::deserialize(&family.tensors).unwrap();
    let cases = family.cases().iter().filter(|c| c["estimator"] == "min_error");
    let mut seen = 0;
    for case in cases {
        seen += 1;
        let id = id(case);
        let tensors = Tensors { file: &file, id };
        let (tiling, grid, options) = (tiling(case), grid(case), options(case));
        let batches = tensors.f32("batches");
        let batches: Vec<&[f32]> = batches.chunks_exact(tiling.len()).collect();
        let count = |name: &str| case[name].as_u64().unwrap() as usize;
        assert_eq!(batches.len(), count("num_batches"), "{id}");

        // The grid, made from the first batch.
        let first = min_max(batches[0], &tiling).unwrap();
        let margin = |name: &str| case[name].as_f64().unwrap() as f32;
        let layout = CandidateLayout::Reference {
            absolute_margin: margin("absolute_margin"),
            relative_margin: margin("relative_margin"),
        };
        let wanted = count("num_candidates");
        let candidates =
            Candidates::new(&first.min, &first.max, options.symmetric, wanted, layout).unwrap();
        let (n, num_tiles) = (candidates.num_candidates(), tiling.num_tiles());
        let (grid_min, grid_max) = (tensors.f32("grid_min"), tensors.f32("grid_max"));
        assert_eq!(grid_min.len(), n * num_tiles, "{id}");
        let close = |a: f32, b: f32| (a - b).abs() <= 4e-7 * b.abs();
        for i in 0..n {
            for tile in 0..num_tiles {
                let (min, max) = candidates.range(i, tile);
                let at = i * num_tiles + tile;
                assert!(close(min, grid_min[at]), "{id}: {min} {}", grid_min[at]);
                assert!(close(max, grid_max[at]), "{id}: {max} {}", grid_max[at]);
            }
        }

        // The errors of the candidates that the oracle evaluates: the first `wanted`.
        let mut errors = vec![0.0; n * num_tiles];
        for batch in &batches {
            candidate_errors(batch, &tiling, &candidates, grid, &options, &mut errors).unwrap();
        }
        let oracle = tensors.f32("cumulative_error");
        let evaluated = wanted.min(n);
        let reach = batches.concat().iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
        for tile in 0..num_tiles {
            for i in 0..evaluated {
                let (got, expected) =
                    (errors[tile * n + i], f64::from(oracle[i * num_tiles + tile]));
                let limit = 1e-5 * expected + 1e-6 * reach * expected.sqrt() + 1e-12;
                assert!((got - expected).abs() <= limit, "{id}: {i} {got} {expected}");
            }
        }

        // The choice.
        let chosen = tensors.i32("best_index");
        let best = best_candidates(&errors, n).unwrap();
        for tile in 0..num_tiles {
            if n > evaluated {
                // Difference: the oracle's grid is larger than asked for, the surplus keeps error 0,
                // and its first candidate is chosen. Ours evaluates all and chooses the best.
                assert_eq!(chosen[tile] as usize, evaluated, "{id}");
                assert!((evaluated..n).all(|i| oracle[i * num_tiles + tile] == 0.0), "{id}");
                let ours = &errors[tile * n..][..n];
                assert!(ours.iter().all(|&e| ours[best[tile]] <= e), "{id}");
                let options = &options;
                let twin = batches.iter().map(|batch| {
                    candidate_errors_reference(batch, &tiling, &candidates, grid, options).unwrap()
                        [tile * n + evaluated]
                });
                let (got, expected) = (ours[evaluated], twin.sum::<f64>());
                let limit = 1e-5 * expected + 1e-6 * reach * expected.sqrt() + 1e-12;
                assert!((got - expected).abs() <= limit, "{id}: {got} {expected}");
            } else {
                let error = |i: usize| f64::from(oracle[i * num_tiles + tile]);
                let (ours, theirs) = (error(best[tile]), error(chosen[tile] as usize));
                assert!(ours <= theirs * (1.0 + 1e-5), "{id}: {} {}", best[tile], chosen[tile]);
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn conformance_gptq() {
    let family = Family::read("gptq");
    let file = SafeTensors::deserialize(&family.tensors).unwrap();
    for case in family.cases() {
        let id = id(case);
        let tensors = Tensors { file: &file, id };
        let number = |name: &str| case[name].as_u64().unwrap() as usize;
        let (rows, columns) = (number("rows"), number("cols"));
        let granularity = &case["granularity"];
        let tile = match granularity["kind"].as_str().unwrap() {
            "per_tensor" => [rows, columns],
            "per_tile" => <[usize; 2]>::try_from(usizes(&granularity["tile_shape"])).unwrap(),
            "per_channel" => {
                let axes = usizes(&granularity["axes"]);
                [rows, columns]
                    .map_with_axis(|axis, size| if axes.contains(&axis) { 1 } else { size })
            }
            _ => {
                let axes = usizes(&granularity["per_channel_dims"]);
                let blocks = usizes(&granularity["block_dims"]);
                let sizes = usizes(&granularity["block_sizes"]);
                [rows, columns].map_with_axis(|axis, size| {
                    let block = blocks.iter().position(|&b| b == axis);
                    block.map_or(if axes.contains(&axis) { 1 } else { size }, |i| sizes[i])
                })
            }
        };
        let tiling = Tiling::new(&[rows, columns], &tile).unwrap();

        let mut hessian = Hessian::new(columns).unwrap();
        for batch in 0..number("num_batches") {
            hessian.add(&tensors.f32(&format!("input{batch}"))).unwrap();
        }
        let dead: Vec<usize> = case.get("dead_channels").map_or(Vec::new(), usizes);
        assert_eq!(hessian.dead_columns(), dead, "{id}");
        let mut h = hessian.matrix();
        dead.iter().for_each(|&d| h[d * columns + d] = 1.0);
        if columns <= 96 {
            let largest = h.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            for (ours, theirs) in h.iter().zip(tensors.f32("hessian")) {
                assert!(
                    (ours - f64::from(theirs)).abs() <= 1e-6 * largest,
                    "{id}: {ours} {theirs}"
                );
            }
        }

        let damping = FactorOptions {
            perc_damp: case["perc_damp"].as_f64().unwrap(),
            act_order: flag(case, "actorder"),
            ..Default::default()
        };
        let factor = HessianFactor::new(&mut hessian, &damping).unwrap();
        assert_eq!((factor.escalations(), factor.dead_columns()), (0, &dead[..]), "{id}");
        let options = GptqOptions {
            block_size: number("block_size"),
            range: options(case),
            nearest: NearestRounding::Report,
            ..Default::default()
        };
        let weight = tensors.f32("weight");
        let result = gptq(&weight, &tiling, grid(case), &factor, &options).unwrap();

        let (oracle, oracle_scale) = (tensors.f32("quantized_weight"), tensors.f32("scale"));
        let scale = &result.parameters.scale;
        for (ours, theirs) in scale.iter().zip(&oracle_scale) {
            assert!((ours - theirs).abs() <= 2e-2 * theirs, "{id}: scale {ours} {theirs}");
        }
        let same = |(at, (ours, theirs)): (usize, (&f32, &f32))| {
            let tile = tiling.tile_of(&[at / columns, at % columns]);
            (ours - theirs).abs() <= 0.5 * oracle_scale[tile]
        };
        let pairs = result.weight.iter().zip(&oracle).enumerate();
        let agreement = pairs.map(same).filter(|same| *same).count() as f64 / oracle.len() as f64;
        let loss =
            |rounded: &[f32]| -> f64 { hessian_loss(&weight, rounded, &h, columns).iter().sum() };
        let (ours, theirs) = (loss(&result.weight), case["proxy_loss"].as_f64().unwrap());
        let wrong = format!(
            "{id} {tile:?}: {agreement} agree (the oracle with itself: {}), loss {ours} for {theirs}, {} rows to nearest",
            case["self_agreement"], result.nearest_rows
        );
        let (plain, parameters) =
            gptq_reference(&weight, &tiling, grid(case), &mut hessian, &damping, &options).unwrap();
        if tiling.tile_len() == 1 {
            // Difference: a grid for every weight has the smallest scale there is, a few units of the weight's last
            // place. The oracle rounds corrected weights to f32 after each column, which moves a sixth of them by a
            // step; ours keeps sums of what was lost, gives the values of the definition in double precision, and
            // loses less.
            let options = GptqOptions { nearest: NearestRounding::Ignore, ..options };
            let own = gptq(&weight, &tiling, grid(case), &factor, &options).unwrap();
            let pairs = own.weight.iter().zip(&plain).enumerate();
            let defined = pairs.map(same).filter(|same| *same).count() as f64 / plain.len() as f64;
            let less = ours <= theirs * (1.0 + 1e-6);
            assert!(defined >= 0.99 && less, "{wrong}; with the definition {defined}");
        } else {
            assert!(agreement >= 0.99 && ours <= 1.01 * theirs, "{wrong}");
        }
        // Ours counts without the ones that stand for dead columns.
        let off = (result.loss - ours).abs();
        assert!(
            off <= 1e-3 * ours + 1e-12 || !dead.is_empty(),
            "{wrong}, reported {}",
            result.loss
        );

        let (nearest, theirs) =
            (result.nearest_loss.unwrap(), case["proxy_loss_rtn"].as_f64().unwrap());
        assert!(
            (nearest - theirs).abs() <= 2e-3 * theirs + 1e-12 || !dead.is_empty(),
            "{id}: {nearest} {theirs}"
        );

        assert!(
            loss(&plain) <= 1.01 * case["proxy_loss"].as_f64().unwrap(),
            "{id}: {}",
            loss(&plain)
        );
        assert_eq!(parameters.offset.is_some(), result.parameters.offset.is_some(), "{id}");
    }
}

/// A shape's extents, each with its axis.
trait MapWithAxis {
    fn map_with_axis(self, f: impl Fn(usize, usize) -> usize) -> Self;
}

impl MapWithAxis for [usize; 2] {
    fn map_with_axis(self, f: impl Fn(usize, usize) -> usize) -> Self {
        [f(0, self[0]), f(1, self[1])]
    }
}
