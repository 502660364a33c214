use std::path::{Path, PathBuf};

use expect_test::{Expect as Expected, expect};

use super::*;
use crate::data::{ArrayData, DataPath, Dataset, EachFile, InputType, ModelInput};
use crate::quantization::affine::{OneSided, RangeSettings};
use crate::quantization::quant_init::{ChannelAxis, Expect, QuantizerSpec, default_context};
use crate::quantization::{DynamicLinearQuantizerConfig, Granularity, LinearQuantizerConfig};
use crate::range_setting::EstimatorConfig;

mod algorithms;
mod hostile;
mod queries;
mod reading;
mod refusals;
mod rules;

fn parse(text: &str) -> Result<QuantConfigFile, Error> {
    QuantConfigFile::parse(text, "w8a8.toml", Path::new("folder"))
}

/// The whole message of a text that is refused; the version stands in the first line.
#[track_caller]
fn refused(text: &str, expected: Expected) {
    let error = parse(&format!("schema_version = 1\n{text}")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    expected.assert_eq(&error.to_string());
}

/// The rule with this quantizer.
#[track_caller]
fn quantizer(text: &str) -> RuleEntry {
    let text = format!("schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {text}\n");
    parse(&text).unwrap_or_else(|error| panic!("{error}")).rules.remove(0)
}

/// Why the rule with this quantizer is refused, without the excerpt.
#[track_caller]
fn refused_quantizer(text: &str, expected: &str) {
    let text = format!("schema_version = 1\n[[rule]]\nquery = '**'\nquantizer = {text}\n");
    let message = parse(&text).unwrap_err().to_string();
    let first = message.lines().next().unwrap_or_default();
    let help = message.lines().last().unwrap_or_default();
    let help = help.trim_start_matches([' ', '|', '^']);
    assert_eq!(format!("{first}; {help}").trim_end_matches("; "), expected);
}
