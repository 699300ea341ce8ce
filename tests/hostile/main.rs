//! The hostile suite: what a guest must not get away with (see `docs/guide/hostile.md`).

fn main() {
    lamina_tests::hostile::main()
}
