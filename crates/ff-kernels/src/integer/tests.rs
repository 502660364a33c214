//! What cannot be seen from outside: the way around saturation on machines that have it not.

use super::product::Product;
use super::{
    CodeView, ConvWindow, PackedFilter, PackedWeight, conv, integer_conv_reference,
    integer_linear_reference, linear,
};
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
        let job = linear::Job::new((a, affine), right, None, fast.len()).unwrap();
        job.run(&product, a, &weight, None, linear::Target::Floats(&mut fast));
        assert_eq!(fast, plain, "{lo}..={hi}");

        let x = CodeView::new(&a.memory()[..2 * 6 * 100], [2, 6, 10, 10]).unwrap();
        let filter = CodeView::new(&w.memory()[..5 * 6 * 9], [5, 6, 3, 3]).unwrap();
        let window = ConvWindow { padding: [[1; 2]; 2], ..Default::default() };
        let mut plain = vec![0.0; 2 * 5 * 100];
        integer_conv_reference(x, affine, filter, affine, window, None, &mut plain).unwrap();
        let packed = PackedFilter::pack(&product, filter, 1).unwrap();
        let mut fast = vec![0.0; plain.len()];
        let job =
            conv::Job::new((x, affine), (packed.kind(), affine), window, None, &fast).unwrap();
        job.run(&product, x, &packed, &mut fast);
        assert_eq!(fast, plain, "convolution, {lo}..={hi}");
    }
}
