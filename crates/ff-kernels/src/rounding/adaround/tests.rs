use super::super::tests::{Noise, Problem};
use super::*;

/// What [`gradient`] is the gradient of, in f64, for every row.
fn objective(state: &State, gram: &[f64], step: Step) -> Vec<f64> {
    let n = state.columns;
    let strips = state.unit.len();
    let value = |lanes: &[Lane<f32>], at: usize, r: usize| f64::from(lanes[at][r]);
    (0..strips * WIDTH)
        .map(|row| {
            let (strip, r) = (row / WIDTH, row % WIDTH);
            let h: Vec<f64> = (0..n)
                .map(|j| {
                    let sigmoid = 1.0 / (1.0 + (-value(&state.v, strip * n + j, r)).exp());
                    (1.2 * sigmoid - 0.1).clamp(0.0, 1.0)
                })
                .collect();
            let d: Vec<f64> = (0..n)
                .map(|j| {
                    let at = strip * n + j;
                    value(&state.scale, at, r) * (value(&state.fraction, at, r) - h[j])
                })
                .collect();
            let mut loss = 0.0;
            for j in 0..n {
                let product: f64 = (0..n).map(|k| gram[j * n + k] * d[k]).sum();
                let at = strip * n + j;
                let b = if state.linear.is_empty() { 0.0 } else { value(&state.linear, at, r) };
                loss += d[j] * (product + 2.0 * b);
            }
            let pull = |h: &f64| 1.0 - (2.0 * h - 1.0).abs().powf(step.beta.into());
            let regularizer: f64 = h.iter().map(pull).sum();
            loss * value(&state.unit, strip, r) + f64::from(step.lambda) * regularizer
        })
        .collect()
}

#[test]
fn gradient_is_that_of_the_objective() {
    let options = AdaRoundOptions::default();
    for seed in 0..60 {
        let problem = Problem::new(seed);
        let Problem { weight, moments, tiling, grid, .. } = &problem;
        let layer = Layer::new(weight, moments, tiling, problem.affine(), *grid).unwrap();
        let judge = Judge::new(moments);
        let n = layer.columns;
        let mut state = State::new(&layer, moments, &judge, 0, layer.rows);
        // Before anything is learned, weights inside the grid are where they were.
        state.forward();
        for (at, lane) in state.fraction.iter().enumerate() {
            for (r, fraction) in lane.iter().enumerate() {
                if (0.0..=1.0).contains(fraction) && state.scale[at][r] > 0.0 {
                    assert!(state.error[at][r].abs() < 1e-5 * state.scale[at][r]);
                }
            }
        }
        let mut noise = Noise(seed);
        state.v.iter_mut().flat_map(|v| &mut v.0).for_each(|v| *v += noise.uniform());
        state.forward();
        state.multiply(&Panels::new(n, n, |k, j| moments.gram[k * n + j] as f32));
        let step = Step { lambda: 0.7, beta: 3.5, ..Step::new(&options, 0) };
        for j in 0..n {
            let mut sides = [-1e-3f32, 1e-3].map(|move_by| {
                let kept: Vec<Lane<f32>> = state.v.clone();
                for strip in 0..state.unit.len() {
                    state.v[strip * n + j].iter_mut().for_each(|v| *v += move_by);
                }
                let objective = objective(&state, &moments.gram, step);
                state.v = kept;
                objective
            });
            let above = sides[1].split_off(0);
            for row in 0..layer.rows {
                let (at, r) = (row / WIDTH * n + j, row % WIDTH);
                let v = state.v[at][r];
                let limit = 11f32.ln();
                if (v.abs() - limit).abs() < 0.01 || (state.h[at][r] - 0.5).abs() < 0.01 {
                    // The objective has a corner here.
                    continue;
                }
                let slope = state.slope[at][r] * state.unit[row / WIDTH][r];
                let exact = (above[row] - sides[0][row]) / 2e-3;
                let found = f64::from(gradient(state.h[at][r], state.scale[at][r], slope, step));
                let size = sides[0][row].abs().max(1.0);
                assert!(
                    (found - exact).abs() < 2e-3 * (exact.abs() + size),
                    "seed {seed}, row {row}, weight {j}: {found}, by differences {exact}"
                );
            }
        }
    }
}

#[test]
fn regularizer_follows_its_schedule() {
    let options = AdaRoundOptions { iterations: 100, ..Default::default() };
    assert_eq!(options.regularizer_at(19), (0.0, 20.0));
    assert_eq!(options.regularizer_at(20), (0.5, 20.0));
    assert_eq!(options.regularizer_at(60), (0.5, 11.0));
    let (_, last) = options.regularizer_at(99);
    assert!(last > 2.0 && last < 2.01);
    let warm = AdaRoundOptions { warm_up: 1.0, ..options };
    assert_eq!(warm.regularizer_at(99).0, 0.0);
}
