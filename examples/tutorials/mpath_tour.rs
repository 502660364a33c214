//! A tour of path queries: how to say which layers, slots and quantizers are meant.
//!
//!     cargo run --release -p fastforward-rs --example mpath_tour
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]

#[cfg(not(test))] // the tests bring it
mod support;

use std::io::{self, Write};

use crate::support::Result;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use fastforward::Module;
use fastforward::module::NodeRef;
use fastforward::mpath::{Aliases, SearchOptions, search};
use fastforward::nn::{LayerNorm, Linear};
use fastforward::quantization::quant_init::model_context;

/// A model with layers in a list, as encoders have them.
#[derive(Module)]
struct Encoder {
    embed: Linear,
    layers: Vec<Block>,
    head: Linear,
}

#[derive(Module)]
struct Block {
    query: Linear,
    key: Linear,
    mlp: Mlp,
    norm: LayerNorm,
}

#[derive(Module)]
struct Mlp {
    up: Linear,
    down: Linear,
}

/// What to ask, and why.
const QUERIES: [(&str, &str); 12] = [
    ("head", "a name is a path of one step"),
    ("layers/0/mlp/up", "steps are separated by `/`"),
    ("layers/*/query", "`*` is any one step"),
    ("**/down", "`**` is any number of steps, also none"),
    ("layers/*/{query,key}", "braces: one of these"),
    ("layers/*/~norm", "`~`: anything but this"),
    ("**/[re:up|down]", "a regular expression over the whole name"),
    ("layers/**/[cls:Linear]", "a class, by its name"),
    ("**/[cls:torch.nn.LayerNorm]", "by the name that PyTorch has for it"),
    ("**/mlp/**/[quantizer:parameter/weight]", "slots, by their tags"),
    ("{embed,head}/[quantizer:activation]", "a tag stands for all tags below it"),
    ("layers/*/&projections/[quantizer:parameter]", "`&`: a name for a part of a query"),
];

fn main() -> Result<()> {
    run(&mut io::stdout())
}

pub fn run(out: &mut dyn Write) -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let linear = |name: &str| Linear::new(8, 8, false, vb.pp(name));
    let block = |index: usize| -> Result<Block> {
        let at = |name: &str| format!("layers.{index}.{name}");
        Ok(Block {
            query: linear(&at("query"))?,
            key: linear(&at("key"))?,
            mlp: Mlp { up: linear(&at("mlp.up"))?, down: linear(&at("mlp.down"))? },
            norm: LayerNorm::new(&[8], 1e-5, true, vb.pp(at("norm")))?,
        })
    };
    let model = Encoder {
        embed: linear("embed")?,
        layers: vec![block(0)?, block(1)?],
        head: linear("head")?,
    };

    // Names of classes mean what this model's context says they mean.
    let context = model_context(&model);
    let mut aliases = Aliases::new();
    aliases.define("projections", context.query("{query,key}")?)?;
    for (query, what) in QUERIES {
        let selector = context.query_with(query, &aliases)?;
        let found = search(&selector, NodeRef::Module(&model), &SearchOptions::new(&context))?;
        writeln!(out, "{query}\n    {what}")?;
        // `search` answers in the order of the reference, a breadth-first one; here they are sorted.
        let mut names: Vec<&str> = found.iter().map(|result| result.full_name()).collect();
        names.sort_unstable();
        for name in names {
            writeln!(out, "    - {name}")?;
        }
    }

    // A query that is wrong says where.
    for wrong in ["layers/*/[cls:Liner]", "layers/[quantizer:parameter/weight"] {
        if let Err(error) = context.query(wrong) {
            writeln!(out, "\n{error}")?;
        }
    }
    Ok(())
}
