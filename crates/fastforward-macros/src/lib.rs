//! `#[derive(Module)]` for FastForward.
//!
//! Use it through the crate that defines the trait, `fastforward` or `fastforward-core`: both re-export the derive
//! beside the trait, and its documentation stands there.
//!
//! The macro only writes down names and order. What a field *is* (a child, a slot, a parameter, data) depends on the
//! traits of its type, which a macro cannot see; each field becomes a call of `Field::show` on that type, and the
//! compiler decides. So the macro needs no attributes on ordinary fields, works with generic types, and a field that
//! cannot be shown is an error of the compiler at the field's type.
#![forbid(unsafe_code)]

mod attributes;
mod expand;
mod problems;

use proc_macro::TokenStream;

/// Writes `Module` from the fields of a struct or the variants of an enum.
#[proc_macro_derive(Module, attributes(module))]
pub fn derive_module(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    expand::module(&input).unwrap_or_else(|error| error.into_compile_error()).into()
}
