use super::*;
use crate::{fake_quantize, min_max, parameters_for_range, quantize, simd};

/// Seeded numbers, roughly normal.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (uniform() + uniform() + uniform()) * 2.0
    }

    fn below(&mut self, n: usize) -> usize {
        self.next();
        (self.0 >> 20) as usize % n
    }

    fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Samples whose features are mixtures of `rank` sources, plus noise of their own.
fn samples(noise: &mut Noise, count: usize, features: usize, rank: usize, own: f32) -> Vec<f32> {
    let mix = noise.take(rank * features);
    let mut samples = Vec::new();
    for _ in 0..count {
        let sources = noise.take(rank);
        for f in 0..features {
            let shared: f32 = (0..rank).map(|s| sources[s] * mix[s * features + f]).sum();
            samples.push(shared + own * noise.next());
        }
    }
    samples
}

fn in_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn hessian_is_the_second_moment() {
    // Around the sizes of strips, blocks and of the samples taken in together.
    for (features, count) in [(1, 1), (31, 7), (33, 300), (257, 40), (300, 1100), (70, 2500)] {
        let x = Noise::new(7).take(features * count);
        let mut hessian = Hessian::new(features).unwrap();
        hessian.add(&x).unwrap();
        let h = hessian.matrix();
        let mut largest = 0.0f64;
        for (i, j) in (0..features).flat_map(|i| (0..features).map(move |j| (i, j))) {
            let sum: f64 = x.chunks(features).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
            largest = largest.max((h[i * features + j] - sum * 2.0 / count as f64).abs());
        }
        assert!(largest < 2e-6, "{features} {count}: {largest}");
    }
}

#[test]
fn hessian_is_as_accurate_as_f32_products_of_batches() {
    // The reference multiplies in f32 whole batches, and adds them in f64.
    let (features, batch, batches) = (24, 512, 8);
    let x: Vec<f32> =
        Noise::new(3).take(features * batch * batches).iter().map(|x| x + 1.0).collect();
    let mut hessian = Hessian::new(features).unwrap();
    hessian.add(&x).unwrap();
    let h = hessian.matrix();
    let (mut ours, mut theirs) = (0.0f64, 0.0f64);
    for (i, j) in (0..features).flat_map(|i| (0..features).map(move |j| (i, j))) {
        let products = |x: &[f32]| x.chunks(features).map(|x| (x[i], x[j])).collect::<Vec<_>>();
        let exact: f64 =
            products(&x).iter().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let in_f32 = x
            .chunks(batch * features)
            .map(|x| f64::from(products(x).iter().fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum))));
        let n = (batch * batches) as f64;
        ours += (h[i * features + j] - exact * 2.0 / n).powi(2);
        theirs += ((in_f32.sum::<f64>() - exact) * 2.0 / n).powi(2);
    }
    assert!(ours < theirs, "{ours} {theirs}");
}

#[test]
fn hessian_does_not_depend_on_batches_or_threads() {
    let (features, count) = (290, 1500);
    let x = Noise::new(5).take(features * count);
    let kept = x.clone();
    let run = |threads, rows: usize| {
        in_threads(threads, || {
            let mut hessian = Hessian::new(features).unwrap();
            x.chunks(rows * features).for_each(|x| hessian.add(x).unwrap());
            hessian.lower()
        })
    };
    let one = run(1, count);
    for (threads, rows) in [(1, 1), (2, 7), (3, 256), (4, 999), (2, 1024)] {
        assert_eq!(run(threads, rows), one, "{threads} threads, {rows} rows");
    }
    assert_eq!(x, kept);
}

#[test]
fn hessians_are_merged_and_saved() {
    let features = 40;
    let x = Noise::new(11).take(features * 600);
    let (left, right) = x.split_at(features * 200);
    let hessian = |x: &[f32]| {
        let mut hessian = Hessian::new(features).unwrap();
        hessian.add(x).unwrap();
        hessian
    };
    let mut merged = hessian(left);
    merged.merge(hessian(right)).unwrap();
    assert_eq!(merged.count(), 600);
    let mut whole = hessian(&x);
    for (a, b) in merged.matrix().iter().zip(whole.matrix()) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let lower = merged.lower();
    let mut again = Hessian::from_lower(features, merged.count(), &lower).unwrap();
    assert_eq!((again.lower(), again.matrix()), (lower, merged.matrix()));
    assert!(merged.merge(Hessian::new(41).unwrap()).is_err());
    assert!(Hessian::from_lower(3, 1, &[0.0; 5]).is_err());
    assert!(Hessian::from_lower(1, 1, &[f64::NAN]).is_err());
}

#[test]
fn samples_that_cannot_be_used_change_nothing() {
    let mut hessian = Hessian::new(3).unwrap();
    assert!(hessian.add(&[1.0; 4]).is_err());
    let err = hessian.add(&[1.0, f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0]).unwrap_err();
    assert_eq!(err.to_string(), "2 values are not finite, at element 1, element 3");
    assert_eq!((hessian.count(), hessian.lower()), (0, vec![0.0; 6]));
    assert!(Hessian::new(usize::MAX).is_err());
    hessian.add(&[1e30; 3]).unwrap();
    assert!(HessianFactor::new(&mut hessian, &FactorOptions::default()).is_err());
}

#[test]
fn factor_gives_the_hessian_back() {
    for (features, act_order) in [(1, false), (9, true), (40, false), (130, true)] {
        let mut noise = Noise::new(13);
        let x = samples(&mut noise, 200, features, 3, 0.3);
        let mut hessian = Hessian::new(features).unwrap();
        hessian.add(&x).unwrap();
        let options = FactorOptions { act_order, ..Default::default() };
        let factor = HessianFactor::new(&mut hessian, &options).unwrap();
        let h = hessian.matrix();
        let mean = (0..features).map(|i| h[i * features + i]).sum::<f64>() / features as f64;
        let r = |row: usize, column: usize| match row <= column {
            true => f64::from(factor.group(column / 8)[row][column % 8]),
            false => 0.0,
        };
        for (i, j) in (0..features).flat_map(|i| (0..features).map(move |j| (i, j))) {
            let product: f64 = (0..features).map(|k| r(i, k) * r(j, k)).sum();
            let damp = if i == j { 0.01 * mean } else { 0.0 };
            let expected = h[factor.order()[i] * features + factor.order()[j]] + damp;
            assert!((product - expected).abs() < 1e-5 * mean, "{i} {j}: {product} {expected}");
        }
    }
}

#[test]
fn factor_and_weights_do_not_depend_on_threads() {
    let (rows, features) = (301, 290);
    let mut noise = Noise::new(17);
    let x = samples(&mut noise, 400, features, 5, 0.2);
    let weight = noise.take(rows * features);
    for (act_order, tile) in [(true, [1, features]), (false, [1, 58]), (false, [7, 10])] {
        let run = |threads| {
            in_threads(threads, || {
                let mut hessian = Hessian::new(features).unwrap();
                hessian.add(&x).unwrap();
                let options = FactorOptions { act_order, ..Default::default() };
                let factor = HessianFactor::new(&mut hessian, &options).unwrap();
                let tiling = Tiling::new(&[rows, features], &tile).unwrap();
                let grid = IntegerGrid::signed(3).unwrap();
                gptq(&weight, &tiling, grid, &factor, &GptqOptions::default()).unwrap()
            })
        };
        let one = run(1);
        for threads in 2..=4 {
            assert!(run(threads) == one, "{threads} threads, {tile:?}");
        }
    }
}

/// Whether the negative half of the grid is needed is one decision for all rows of a group, in however many batches.
#[test]
fn rows_of_one_sign_decide_together_for_any_number_of_threads() {
    let (rows, features) = (64, 16);
    let mut noise = Noise::new(23);
    let x = samples(&mut noise, 100, features, 5, 0.2);
    let mut weight = noise.take(rows * features);
    for (i, w) in weight.iter_mut().enumerate() {
        *w = if i < 32 * features { w.abs() + 0.1 } else { -w.abs() - 0.1 };
    }
    let tiling = Tiling::new(&[rows, features], &[1, 4]).unwrap();
    let grid = IntegerGrid::signed(4).unwrap();
    let run = |threads| {
        in_threads(threads, || {
            let mut hessian = Hessian::new(features).unwrap();
            hessian.add(&x).unwrap();
            let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
            gptq(&weight, &tiling, grid, &factor, &GptqOptions::default()).unwrap()
        })
    };
    let one = run(1);
    assert_eq!(one.parameters.offset, None);
    for threads in 2..=4 {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// A random problem: any shape, granularity and option, with Hessians that are singular or have dead features.
struct Problem {
    rows: usize,
    columns: usize,
    weight: Vec<f32>,
    tiling: Tiling,
    grid: IntegerGrid,
    hessian: Hessian,
    factor: FactorOptions,
    options: GptqOptions,
}

impl Problem {
    fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed + 1);
        let rows = [1, 2, 3, 12, 32, 48, 66][noise.below(7)];
        let columns = [1, 2, 7, 16, 24, 60, 96, 300][noise.below(8)];
        let divisor = |noise: &mut Noise, n: usize| {
            let all: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
            all[noise.below(all.len())]
        };
        let tile = match noise.below(5) {
            0 => [rows, columns],
            1 => [1, columns],
            2 => [rows, 1],
            3 => [1, divisor(&mut noise, columns)],
            _ => [divisor(&mut noise, rows), divisor(&mut noise, columns)],
        };
        let count = [1, 5, 40, 500][noise.below(4)];
        let rank = 1 + noise.below(columns.min(12));
        let own = [0.0, 0.05, 1.0][noise.below(3)];
        let mut x = samples(&mut noise, count, columns, rank, own);
        for _ in 0..noise.below(4) {
            let dead = noise.below(columns);
            x.chunks_mut(columns).for_each(|x| x[dead] = 0.0);
        }
        if noise.below(8) == 0 {
            let loud = noise.below(columns);
            x.chunks_mut(columns).for_each(|x| x[loud] *= 300.0);
        }
        let mut hessian = Hessian::new(columns).unwrap();
        hessian.add(&x).unwrap();
        let mut weight = noise.take(rows * columns);
        if noise.below(6) == 0 {
            weight.iter_mut().for_each(|w| *w = w.abs());
        }
        Problem {
            rows,
            columns,
            weight,
            tiling: Tiling::new(&[rows, columns], &tile).unwrap(),
            grid: IntegerGrid::signed([2, 3, 4, 8][noise.below(4)]).unwrap(),
            hessian,
            factor: FactorOptions {
                perc_damp: [0.0, 0.001, 0.01, 0.1][noise.below(4)],
                act_order: noise.below(2) == 0,
                ..Default::default()
            },
            options: GptqOptions {
                block_size: [1, 5, 16, 64, 128, 1000][noise.below(6)],
                static_groups: noise.below(3) == 0,
                dead_columns: [DeadColumns::Keep, DeadColumns::Zero][noise.below(2)],
                range: RangeOptions { symmetric: noise.below(2) == 0, ..Default::default() },
                nearest: [NearestRounding::Guard, NearestRounding::Report][noise.below(2)],
            },
        }
    }

    fn nearest(&self) -> Vec<f32> {
        let range = min_max(&self.weight, &self.tiling).unwrap();
        let range = (range.min, range.max);
        let parameters =
            parameters_for_range(&range.0, &range.1, self.grid, &self.options.range).unwrap();
        let mut out = vec![0.0; self.weight.len()];
        let affine = parameters.affine();
        fake_quantize(&self.weight, &self.tiling, affine, self.grid, &mut out).unwrap();
        out
    }
}

#[test]
fn never_loses_more_than_nearest_rounding() {
    let (mut better, mut rows_to_nearest) = (0, 0);
    for seed in 0..400 {
        let mut problem = Problem::new(seed);
        let factor = HessianFactor::new(&mut problem.hessian, &problem.factor).unwrap();
        let Problem { weight, tiling, grid, options, columns, .. } = &problem;
        let result = gptq(weight, tiling, *grid, &factor, options).unwrap();
        let h = problem.hessian.clone().matrix();
        let nearest: f64 = hessian_loss(weight, &problem.nearest(), &h, *columns).iter().sum();
        let ours: f64 = hessian_loss(weight, &result.weight, &h, *columns).iter().sum();
        assert!(ours <= nearest * (1.0 + 1e-9) + 1e-12, "problem {seed}: {ours} for {nearest}");
        better += usize::from(ours < 0.99 * nearest);
        rows_to_nearest += result.nearest_rows;

        // What is reported is what it is, but for damping's part of the rounding.
        let diagonal: f64 = factor.added().iter().sum::<f64>();
        let near = 2e-3 * nearest.max(ours) + 1e-4 * diagonal * problem.rows as f64 + 1e-12;
        assert!((result.loss - ours).abs() <= near, "problem {seed}: {} is {ours}", result.loss);
        if let Some(reported) = result.nearest_loss {
            assert!((reported - nearest).abs() <= near, "problem {seed}: {reported} is {nearest}");
        }

        // On the grid: quantizing again changes nothing.
        let mut codes = vec![0i32; weight.len()];
        let affine = result.parameters.affine();
        quantize(&result.weight, tiling, affine, *grid, &mut codes).unwrap();
        let mut again = vec![0.0; weight.len()];
        crate::dequantize(&codes, tiling, affine, &mut again).unwrap();
        assert_eq!(again, result.weight, "problem {seed}");
    }
    // The test is worth something only if both happen.
    assert!(better > 100 && rows_to_nearest > 0, "{better} {rows_to_nearest}");
}

#[test]
fn agrees_with_its_twin() {
    let (mut compared, mut same) = (0, 0);
    for seed in 1000..1300 {
        let mut problem = Problem::new(seed);
        // With little damping, two roundings of one problem go apart; that is what goldens and losses are for.
        problem.factor.perc_damp = 0.1;
        problem.options.nearest = NearestRounding::Ignore;
        if problem.tiling.tile_len() == 1 {
            continue;
        }
        let factor = HessianFactor::new(&mut problem.hessian, &problem.factor).unwrap();
        let mut hessian = problem.hessian.clone();
        let Problem { weight, tiling, grid, options, columns, .. } = &problem;
        let result = gptq(weight, tiling, *grid, &factor, options).unwrap();
        let (twin, parameters) =
            gptq_reference(weight, tiling, *grid, &mut hessian, &problem.factor, options).unwrap();
        let half = |at: usize| {
            let tile = tiling.tile_of(&[at / columns, at % columns]);
            0.5 * parameters.scale[tile]
        };
        compared += twin.len();
        let agree =
            (0..twin.len()).filter(|&i| (twin[i] - result.weight[i]).abs() <= half(i)).count();
        same += agree;
        assert!(agree * 10 >= twin.len() * 9, "problem {seed}: {agree} of {}", twin.len());
        assert_eq!(parameters.offset.is_some(), result.parameters.offset.is_some(), "{seed}");
    }
    assert!(same as f64 >= 0.998 * compared as f64, "{same} of {compared}");
}

#[test]
fn strided_weights_are_read_as_they_lie() {
    let mut problem = (0..).map(Problem::new).find(|p| p.rows > 40 && p.columns > 60).unwrap();
    let factor = HessianFactor::new(&mut problem.hessian, &problem.factor).unwrap();
    let Problem { rows, columns, weight, tiling, grid, options, .. } = &problem;
    let plain = gptq(weight, tiling, *grid, &factor, options).unwrap();
    let mut transposed = vec![0.0; weight.len()];
    for (at, w) in weight.iter().enumerate() {
        transposed[at % columns * rows + at / columns] = *w;
    }
    let shape = [*rows, *columns];
    let tiling = Tiling::strided(&shape, &[1, *rows], tiling.tile_shape()).unwrap();
    assert!(gptq(&transposed, &tiling, *grid, &factor, options).unwrap() == plain);
}

#[test]
fn singular_hessians_are_damped_until_they_have_a_factor() {
    let mut hessian = Hessian::new(3).unwrap();
    hessian.add(&[1.0, 1.0, 1.0]).unwrap();
    let none = FactorOptions { perc_damp: 0.0, ..Default::default() };
    let factor = HessianFactor::new(&mut hessian, &none).unwrap();
    assert!(factor.escalations() > 0 && factor.perc_damp() > 0.0);
    let strict = FactorOptions { perc_damp: 0.0, max_perc_damp: 0.0, ..Default::default() };
    let err = HessianFactor::new(&mut hessian, &strict).unwrap_err();
    assert_eq!(
        err.to_string(),
        "hessian is not positive definite with 0 of its mean diagonal added, \
         allow more damping or add samples"
    );
    let bad = FactorOptions { perc_damp: f64::NAN, ..Default::default() };
    assert!(HessianFactor::new(&mut hessian, &bad).is_err());
    let bad = FactorOptions { max_perc_damp: 0.0, ..Default::default() };
    assert!(HessianFactor::new(&mut hessian, &bad).is_err());
}

#[test]
fn without_samples_weights_are_rounded_to_nearest() {
    let mut problem = Problem::new(4);
    let mut hessian = Hessian::new(problem.columns).unwrap();
    problem.options.dead_columns = DeadColumns::Keep;
    let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
    let Problem { weight, tiling, grid, options, .. } = &problem;
    let result = gptq(weight, tiling, *grid, &factor, options).unwrap();
    assert_eq!((result.weight, result.nearest_rows), (problem.nearest(), 0));
    assert!(result.loss < 1e-9, "{}", result.loss);
}

#[test]
fn dead_weights_are_kept_or_zeroed() {
    let mut hessian = Hessian::new(2).unwrap();
    hessian.add(&[1.0, 0.0, 2.0, 0.0]).unwrap();
    let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
    assert_eq!(factor.dead_columns(), [1]);
    let run = |dead_columns| {
        let options = GptqOptions { dead_columns, ..Default::default() };
        let (tiling, grid) = (Tiling::whole(&[1, 2]).unwrap(), IntegerGrid::signed(4).unwrap());
        gptq(&[-0.8, 0.5], &tiling, grid, &factor, &options).unwrap().weight
    };
    assert_eq!(run(DeadColumns::Keep), [-0.8, 0.5]);
    assert_eq!(run(DeadColumns::Zero), [-0.8, 0.0]);
}

#[test]
fn empty_weights_and_wrong_arguments() {
    let mut hessian = Hessian::new(4).unwrap();
    let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
    let (options, grid) = (GptqOptions::default(), IntegerGrid::signed(4).unwrap());
    let run = |weight: &[f32], shape: &[usize], options: &GptqOptions| {
        gptq(weight, &Tiling::whole(shape).unwrap(), grid, &factor, options)
    };
    assert_eq!(run(&[], &[0, 4], &options).unwrap().weight, []);
    assert!(run(&[0.0; 8], &[2, 4], &options).is_ok());
    assert!(run(&[0.0; 8], &[8], &options).is_err());
    assert!(run(&[0.0; 10], &[2, 5], &options).is_err());
    assert!(run(&[0.0; 7], &[2, 4], &options).is_err());
    assert!(run(&[f32::NAN; 8], &[2, 4], &options).is_err());
    assert!(run(&[0.0; 8], &[2, 4], &GptqOptions { block_size: 0, ..options }).is_err());
    let mut none = Hessian::new(0).unwrap();
    let factor = HessianFactor::new(&mut none, &FactorOptions::default()).unwrap();
    let tiling = Tiling::new(&[3, 0], &[1, 0]).unwrap();
    assert_eq!(gptq(&[], &tiling, grid, &factor, &options).unwrap().weight, []);
}

#[test]
fn no_instruction_set_loses_more() {
    // The last bits depend on the instruction set; what is lost hardly does.
    let mut losses = Vec::new();
    for level in simd::tests::LEVELS {
        let limit = move |_| simd::tests::HIGHEST.set(level);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).start_handler(limit);
        losses.push(pool.build().unwrap().install(|| {
            let (rows, columns) = (64, 300);
            let mut noise = Noise::new(23);
            let mut hessian = Hessian::new(columns).unwrap();
            hessian.add(&samples(&mut noise, 500, columns, 20, 0.5)).unwrap();
            let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
            let weight = noise.take(rows * columns);
            let tiling = Tiling::new(&[rows, columns], &[1, columns]).unwrap();
            let (grid, options) = (IntegerGrid::signed(4).unwrap(), GptqOptions::default());
            gptq(&weight, &tiling, grid, &factor, &options).unwrap().loss
        }));
    }
    assert!(losses.iter().all(|l| (l - losses[0]).abs() <= 0.02 * losses[0]), "{losses:?}");
}

#[test]
fn given_parameters_of_the_weights_ranges_change_nothing() {
    let (rows, columns) = (6, 40);
    let mut noise = Noise::new(3);
    let weight = noise.take(rows * columns);
    let mut hessian = Hessian::new(columns).unwrap();
    hessian.add(&noise.take(64 * columns)).unwrap();
    let factor = HessianFactor::new(&mut hessian, &FactorOptions::default()).unwrap();
    let grid = IntegerGrid::signed(3).unwrap();
    let options = GptqOptions { static_groups: true, ..Default::default() };
    for tile in [[1, columns], [rows, columns], [2, 8], [1, 1]] {
        let tiling = Tiling::new(&[rows, columns], &tile).unwrap();
        let own = gptq(&weight, &tiling, grid, &factor, &options).unwrap();
        let given = gptq_with_parameters(
            &weight,
            &tiling,
            own.parameters.affine(),
            grid,
            &factor,
            &options,
        )
        .unwrap();
        assert_eq!(own, given);
        let narrow = vec![own.parameters.scale[0] / 2.0; tiling.num_tiles()];
        let affine = Affine { scale: &narrow, offset: None };
        let found =
            gptq_with_parameters(&weight, &tiling, affine, grid, &factor, &options).unwrap();
        assert_eq!(found.parameters.scale, narrow);
        let mut again = vec![0.0; rows * columns];
        crate::fake_quantize(&found.weight, &tiling, affine, grid, &mut again).unwrap();
        assert_eq!(found.weight, again);
        let short = Affine { scale: &narrow[1..], offset: None };
        assert!(gptq_with_parameters(&weight, &tiling, short, grid, &factor, &options).is_err());
    }
}
