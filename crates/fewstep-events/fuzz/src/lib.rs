//! What the fuzz targets share with the tests of fewstep-events.

#[path = "../../tests/it/forge.rs"]
pub mod forge;
#[path = "../../tests/it/subject.rs"]
pub mod subject;
