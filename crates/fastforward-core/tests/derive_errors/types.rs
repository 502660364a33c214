//! Fields whose type is nothing that a module can show.
extern crate fastforward_core as fastforward;

use std::collections::HashMap;

use fastforward::Module;
use fastforward::quantization::QuantizerSlot;

struct Settings;

#[derive(Module)]
struct Unknown {
    settings: Settings,
    list: Vec<Settings>,
    unordered: HashMap<String, QuantizerSlot>,
}

#[derive(Module)]
struct Unbounded<T> {
    inner: T,
}

#[derive(Module)]
enum Activation {
    LeakyRelu(f32),
}

#[derive(Module)]
struct NoAliases {
    #[module(aliases)]
    aliases: Vec<String>,
}

#[derive(Module)]
#[module(class = "Small", extends = [fastforward::module::classes::linear, 4])]
struct NoClasses;

fn main() {}
