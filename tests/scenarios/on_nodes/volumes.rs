//! Single volumes, with a look at their directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::scenarios::cluster::*;
use crate::scenarios::nodes::*;
use crate::scenarios::objects::*;

#[test]
fn a_class_sets_owner_mode_and_retention_of_its_volumes() {
    let test = TestNamespace::new("owner");
    test.create(CLAIMS, &claim("data", "orlop-trash", "16Mi"));
    let bound = test.wait_bound("data");
    let data = fs::metadata(bound.data()).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 1000, 0o750));
    // The class keeps deleted volumes for an hour.
    fs::write(bound.data().join("file"), "kept").unwrap();
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
    let trash = pool_on(&bound.node, "default").join("trash");
    let kept = fs::read_dir(trash).unwrap().flatten().map(|one| one.path().join("data/file"));
    let name = bound.directory().file_name().unwrap().to_str().unwrap().to_owned();
    let ours: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains(&name)).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(fs::read_to_string(&ours[0]).unwrap(), "kept");
}

#[test]
fn an_unmanaged_directory_can_be_used_as_a_volume() {
    let test = TestNamespace::new("unmanaged");
    let data = pool_on(first(), "default").join("volumes/unmanaged/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "old data\n").unwrap();
    test.create(VOLUMES, &volume("unmanaged", "default/unmanaged", first(), "unmanaged", "data"));
    let named = with(claim("data", "static", "16Mi"), "/spec", "volumeName", "unmanaged".into());
    test.create(CLAIMS, &named);
    test.create(PODS, &pod("reader", "data", "cat /data/file; echo more >> /data/file"));
    assert_eq!(test.output("reader"), "old data\n");
    test.delete_and_wait(PODS, "reader");
    test.delete_and_wait(CLAIMS, "data");
    test.delete_and_wait(VOLUMES, "unmanaged");
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "old data\nmore\n");
    fs::remove_dir_all(data.parent().unwrap()).unwrap();
}
