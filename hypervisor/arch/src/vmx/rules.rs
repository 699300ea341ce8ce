//! The checks that VM entry makes.
