//! The layers: their slots and parameters, what they compute, what they learn, what strict mode says of them.
#![cfg(feature = "eager")]

mod attention;
mod batch_norm;
mod common;
mod computed;
mod containers;
mod learned;
mod modes;
mod named;
mod strict;
