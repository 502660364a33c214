//! The program as a user meets it: whole transcripts, wrong inputs, files and their bytes.

mod bench;
mod files;
mod rules;
mod transcripts;
mod weights_only;
mod wrong_inputs;
