//! The core of FastForward.
