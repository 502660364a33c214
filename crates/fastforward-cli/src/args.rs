//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use fastforward_core::config::ActivationType;
use fastforward_onnx::pipeline::{ScoreData, SensitivityScore, SweptSlots};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "fastforward",
    version,
    about = "Quantize neural networks by rules, and prove that it worked",
    after_help = AFTER_HELP,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) common: Common,
}

const AFTER_HELP: &str = "\
Results go to standard output, words about the work to standard error.

Exit codes:
  0  done
  1  done, but a check did not hold: the accuracy floor, the verification of
     the written file, a query that matches nothing
  2  it could not be done: wrong arguments, files, data or settings
  3  the rules are wrong: a query that is none, a rule that matches nothing,
     never wins, or matches another number of slots than it expects";

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing on standard error but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Threads to compute with; the results are the same for any number [default: one per core]
    #[arg(long, short = 'j', global = true, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a model as a tree of modules and quantizer slots
    Inspect(Inspect),
    /// Show what a query matches
    Find(Find),
    /// Show which rule decides each slot, without touching data
    Plan(Plan),
    /// Tell the whole story of one slot
    Explain(Explain),
    /// Quantize a model: plan, calibrate, evaluate, export, read back
    Quantize(Quantize),
    /// Find what each weight and activation costs at each bit width, and the widths that budgets buy
    Sensitivity(Sensitivity),
    /// Measure one or more models side by side
    Evaluate(Evaluate),
    /// List configurations to start from, or print one
    Presets(Presets),
    /// Print a completion script for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Presets {
    /// The preset to print; without it all are listed
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The model: an ONNX file, or weights as safetensors (a file, or the index of several)
    pub(crate) model: PathBuf,
    /// Show this many levels of the tree
    #[arg(long, value_name = "N")]
    pub(crate) depth: Option<usize>,
    /// Show the quantizer slots with their tags
    #[arg(long)]
    pub(crate) slots: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Find {
    /// The model: an ONNX file, or weights as safetensors (a file, or the index of several)
    pub(crate) model: PathBuf,
    /// The query, such as `**/[cls:Conv]/[quantizer:parameter/weight]`
    pub(crate) query: String,
    /// Show only quantizer slots
    #[arg(long)]
    pub(crate) slots: bool,
    /// Show at which step this path stops matching
    #[arg(long, value_name = "PATH", conflicts_with = "slots")]
    pub(crate) why: Option<String>,
    /// A name for a query, used as `&NAME`; may be given several times
    #[arg(long, value_name = "NAME=QUERY", value_parser = alias)]
    pub(crate) alias: Vec<(String, String)>,
}

/// A model and the file that says what to do with it.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The model: an ONNX file, or weights as safetensors (a file, or the index of several)
    pub(crate) model: PathBuf,
    /// The rules and the data, a `quant.toml`
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The integer type of exported activations, in place of the one in the configuration
    #[arg(long, value_name = "TYPE")]
    pub(crate) activations: Option<Activations>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Activations {
    /// Unsigned
    U8,
    /// Signed
    S8,
}

impl From<Activations> for ActivationType {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::U8 => Self::Unsigned,
            Activations::S8 => Self::Signed,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The slot, such as `conv1.weight_quantizer`
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The folder for the results: MODEL.qdq.onnx or MODEL.safetensors, report.json, state/
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Samples that are computed at once, in place of the numbers in the configuration
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
    /// Check everything that can be checked without computing, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show every layer in the table at the end, not only the ten worst
    #[arg(long)]
    pub(crate) all_layers: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sensitivity {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Which slots to sweep: by default those that the budgets decide, all without a budget, weights for a bound on the metric
    #[arg(long, value_name = "SLOTS")]
    pub(crate) slots: Option<Slots>,
    /// The widths to try for weights [default: 2,3,4,6,8]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    pub(crate) bits: Option<Vec<u32>>,
    /// The widths to try for activations, of 2, 4, 8 and 16 [default: 4,8,16]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    pub(crate) activation_bits: Option<Vec<u32>>,
    /// What a network loses in which one slot is quantized
    #[arg(long, value_name = "SCORE", default_value = "sqnr")]
    pub(crate) score: Score,
    /// The samples it is judged on: by default those of `[evaluation]` if there are any, else of `[calibration]`
    #[arg(long, value_name = "SECTION")]
    pub(crate) on: Option<On>,
    /// Judge on the first N of these samples
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) samples: Option<usize>,
    /// Sweep only what this query matches, by slot or module
    #[arg(long, value_name = "QUERY")]
    pub(crate) query: Option<String>,
    /// Choose widths with the least loss: `4bits` on average for weights, `30kB` or `120MiB` of constants,
    /// `activation_bits<=8`, `metric>=90`; one for weights and one for activations go together
    #[arg(long, value_name = "BUDGET")]
    pub(crate) budget: Vec<String>,
    /// Measure the metric of `[evaluation]` for points of the curves, with all quantizers of the rules
    #[arg(long)]
    pub(crate) measure: bool,
    /// Write the configuration with the chosen widths to this file
    #[arg(long, value_name = "FILE", requires = "budget")]
    pub(crate) write: Option<PathBuf>,
    /// Samples that are computed at once, in place of the numbers in the configuration
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Slots {
    /// Constants
    Weights,
    /// Inputs and outputs of nodes
    Activations,
    /// Both
    All,
}

impl From<Slots> for SweptSlots {
    fn from(slots: Slots) -> Self {
        match slots {
            Slots::Weights => Self::Weights,
            Slots::Activations => Self::Activations,
            Slots::All => Self::All,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Score {
    /// Noise over signal of the outputs
    Sqnr,
    /// Kullback-Leibler divergence of the softmax of the outputs
    Kl,
    /// The metric of `[evaluation]`
    Metric,
}

impl From<Score> for SensitivityScore {
    fn from(score: Score) -> Self {
        match score {
            Score::Sqnr => Self::Sqnr,
            Score::Kl => Self::Kl,
            Score::Metric => Self::Metric,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum On {
    /// Those of `[calibration]`
    Calibration,
    /// Those of `[evaluation]`
    Evaluation,
}

impl From<On> for ScoreData {
    fn from(on: On) -> Self {
        match on {
            On::Calibration => Self::Calibration,
            On::Evaluation => Self::Evaluation,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// The ONNX files
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    /// Where the data comes from and what is measured, a `quant.toml`
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Samples that are computed at once, in place of the number in the configuration
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,
    /// Write the outputs to a safetensors file: `outputs` (f32) and `top1` (i64), one model only
    #[arg(long, value_name = "FILE")]
    pub(crate) predictions: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn alias(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, query)) if !name.is_empty() && !query.is_empty() => {
            Ok((name.to_owned(), query.to_owned()))
        }
        _ => Err("expected NAME=QUERY".to_owned()),
    }
}
