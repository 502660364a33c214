//! The program `fastforward`: arguments in, results and exit codes out. The work is done by the libraries.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod output;
mod progress;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;
use fastforward_onnx::ErrorKind;

use args::Cli;
use output::{Exit, Outcome, to_stderr};

/// Fresh pages from the system cost more than much of the arithmetic.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Wrong arguments, and a request for help, end the program here: with 2, and with 0.
    let cli = Cli::parse();
    let exit = match run(&cli) {
        Ok(exit) => exit,
        Err(error) => {
            // The message of an error of ours holds those of its causes.
            to_stderr(&format!("error: {}", text::hang(&error.to_string(), 0)));
            exit_of(&error)
        }
    };
    ExitCode::from(exit as u8)
}

fn run(cli: &Cli) -> anyhow::Result<Exit> {
    if let Some(threads) = cli.common.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let outcome: Outcome = commands::run(&cli.command, &cli.common)?;
    outcome.print(cli.common.json, cli.common.quiet)?;
    Ok(outcome.exit)
}

/// Wrong rules have an exit code of their own; everything else that cannot be done has one.
fn exit_of(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<fastforward_onnx::Error>().map(fastforward_onnx::Error::kind) {
        Some(ErrorKind::Rules) => Exit::WrongRules,
        Some(ErrorKind::Verification) => Exit::CheckFailed,
        _ => Exit::Failed,
    }
}
