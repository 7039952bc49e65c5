//! Checks of the sources and of the documentation. They need neither root nor a pool.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod rules {
    mod layers;
    mod promises;
}
