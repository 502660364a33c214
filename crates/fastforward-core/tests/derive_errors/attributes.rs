//! Mistakes in `#[module(...)]` and in the shape of the type.
extern crate fastforward_core as fastforward;

use fastforward::Module;

#[derive(Module)]
#[module(clas = "Renamed")]
struct UnknownKeys {
    #[module(renam = "a")]
    first: u8,
    #[module(class = "B")]
    second: u8,
    #[module(optional)]
    third: u8,
}

#[derive(Module)]
#[module(class = "not a name")]
#[module(extends = fastforward::module::classes::quantizer(), class = "Twice", class = "Twice")]
struct BadClass;

#[derive(Module)]
struct BadNames {
    #[module(rename = "a/b")]
    slash: u8,
    #[module(rename = "")]
    empty: u8,
    #[module(rename = "same")]
    first: u8,
    same: u8,
    #[module(skip, rename = "gone")]
    both: u8,
    #[module(skip, skip, other)]
    twice: u8,
}

#[derive(Module)]
struct Borrows<'a> {
    part: &'a str,
}

#[derive(Module)]
enum Variants {
    #[module(rename = "x")]
    One(Box<dyn Module>),
    Two {
        #[module(skipp)]
        inner: u8,
    },
}

#[derive(Module)]
union Either {
    a: u8,
    b: i8,
}

#[derive(Module)]
#[module(class = "")]
struct NoName;

#[derive(Module)]
#[module(class = Linear)]
struct Unquoted;

#[derive(Module)]
#[module(class = 3)]
struct Number;

#[derive(Module)]
#[module(class = fastforward::module::classes::linear(), extends = [fastforward::module::classes::relu()])]
struct KnownAndExtended;

#[derive(Module)]
#[module(class = "Unused")]
enum AlwaysPayload {
    One(Box<dyn Module>),
    Two(Box<dyn Module>),
}

#[derive(Module)]
struct TwoAliases {
    #[module(aliases)]
    first: fastforward::mpath::Aliases,
    #[module(aliases)]
    second: fastforward::mpath::Aliases,
    #[module(aliases, skip)]
    third: fastforward::mpath::Aliases,
    #[module(alias)]
    fourth: fastforward::mpath::Aliases,
}

#[derive(Module)]
#[module(aliases)]
struct Misplaced(u8, #[module(rename = "0")] u8);

fn main() {}
