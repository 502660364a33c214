//! The page of operators is that of the table.

use expect_test::expect_file;
use fastforward::tensor::operator::{OPERATORS, find, markdown};

/// `UPDATE_EXPECT=1 cargo test -p fastforward-rs --test eager` writes the page anew.
#[test]
fn the_page_of_operators_is_made_from_the_table() {
    let page = format!(
        "# Operators\n\nOne table (`crates/fastforward/src/tensor/operator/table.rs`) makes the functions of \
         `fastforward::nn::functional`, the checks of strict mode, the dispatch to kernels, and this page. In strict mode an \
         operand marked Q must be quantized, one marked Q? if it is given, one marked M? may be float or absent; every \
         operator needs an output slot, which may hold a stub. Rows marked (ours) are not in the table of the reference.\n\n{}",
        markdown()
    );
    expect_file!["../../../../docs/operators.md"].assert_eq(&page);
}

#[test]
fn the_reference_has_53_operators_and_each_is_found_by_its_names() {
    assert_eq!(OPERATORS.iter().filter(|operator| operator.in_reference).count(), 53);
    for (at, operator) in OPERATORS.iter().enumerate() {
        for name in std::iter::once(&operator.name).chain(operator.torch) {
            let found = OPERATORS.iter().position(|other| std::ptr::eq(other, find(name).unwrap()));
            assert_eq!(found, Some(at), "{name}");
        }
    }
}
