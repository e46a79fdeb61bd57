//! What the fuzz targets share with the property tests of `kernel/tests/hostile`.

#[path = "../../kernel/tests/hostile/damage.rs"]
pub mod damage;
#[path = "../../kernel/tests/hostile/limits.rs"]
pub mod limits;
#[path = "../../kernel/tests/hostile/subject.rs"]
pub mod subject;
#[path = "../../kernel/tests/hostile/views.rs"]
pub mod views;
