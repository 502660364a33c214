//! One file per command: a function from arguments to what is printed.

mod evaluate;
mod explain;
mod find;
mod inspect;
mod plan;
mod presets;
mod quantize;
mod sensitivity;

use clap::CommandFactory;
use fastforward_onnx::pipeline::JobOptions;

use crate::args::{Cli, Command, Common, JobArgs};
use crate::output::Outcome;

pub(crate) fn run(command: &Command, common: &Common) -> anyhow::Result<Outcome> {
    match command {
        Command::Inspect(args) => inspect::run(args),
        Command::Find(args) => find::run(args),
        Command::Plan(args) => plan::run(args, common),
        Command::Explain(args) => explain::run(args, common),
        Command::Quantize(args) => quantize::run(args, common),
        Command::Sensitivity(args) => sensitivity::run(args, common),
        Command::Evaluate(args) => evaluate::run(args, common),
        Command::Presets(args) => presets::run(args),
        Command::Completions(args) => completions(args.shell),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "fastforward", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    Outcome::done(text.clone(), &text)
}

/// The options that every command on a job has.
fn job_options(args: &JobArgs, common: &Common, batch_size: Option<usize>) -> JobOptions {
    JobOptions {
        activations: args.activations.map(Into::into),
        batch_size,
        n_threads: common.threads,
    }
}
