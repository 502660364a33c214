//! What cannot be seen from outside: the way around saturation on machines that have it not.

use super::linear::Job;
use super::product::Product;
use super::{CodeView, PackedWeight, integer_linear_reference};
use crate::Affine;

#[test]
fn splitting_for_machines_that_saturate_changes_nothing() {
    let product = Product::saturating();
    for (lo, hi) in [(-128, 127), (-127, 127), (-64, 64), (-8, 7), (127, 127), (-128, -128)] {
        let codes = |len: usize, lo: i32, hi: i32| -> Vec<i8> {
            (0..len as i32).map(|i| (lo + i * 7919 % (hi - lo + 1)) as i8).collect()
        };
        let (rows, n_in, n_out) = (13, 1031, 37);
        let (a, w) = (codes(rows * n_in, -128, 127), codes(n_out * n_in, lo, hi));
        let (a, w) = (CodeView::new(&a, [rows, n_in]), CodeView::new(&w, [n_out, n_in]));
        let (a, w) = (a.unwrap(), w.unwrap());
        let affine = Affine { scale: &[0.5], offset: Some(&[3.0]) };
        let mut plain = vec![0.0; rows * n_out];
        integer_linear_reference(a, affine, w, affine, None, &mut plain).unwrap();
        let weight = PackedWeight::pack(&product, w);
        let mut fast = vec![0.0; rows * n_out];
        let right = (weight.shape(), weight.range(), affine);
        let job = Job::new((a, affine), right, None, &fast).unwrap();
        job.run(&product, a, &weight, None, &mut fast);
        assert_eq!(fast, plain, "{lo}..={hi}");
    }
}
