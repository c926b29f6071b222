import json

import numpy as np
import pytest
from PIL import Image

from evaluation import rle
from evaluation.collecting import _absent
from evaluation.loaders import load, load_coco, load_voc
from regionsearch.errors import Kind, RegionSearchError


def write(folder, segmentation, **image):
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    entry = {"id": 1, "file_name": "a.png", "width": 8, "height": 6, **image}
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": segmentation}
    content = {"images": [entry], "annotations": [annotation], "categories": [{"id": 3, "name": "dog"}]}
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 5, 1, 5, 4, 2, 4]],
        {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]},
        {"size": [6, 8], "counts": rle.rectangle(6, 8, (2, 1, 5, 4))["counts"].decode()},
    ],
    ids=["polygon", "run lengths", "compressed"],
)
def test_all_three_forms_of_a_coco_mask(tmp_path, segmentation):
    dataset = load(write(tmp_path, segmentation))
    (sample,) = dataset.samples
    assert dataset.categories == ("dog",)
    assert sample.categories == (0,)
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:4, 2:5] = True
    assert (rle.decode(sample.instances[0].mask) == expected).all()


@pytest.mark.parametrize("segmentation", [{}, {"segmentation": []}, {"segmentation": None}])
def test_a_box_without_a_mask_is_its_rectangle(tmp_path, segmentation):
    path = write(tmp_path, [])
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    content["annotations"][0] |= {"bbox": [2, 1, 3, 3]} | segmentation
    path.write_text(json.dumps(content))
    (sample,) = load(path).samples
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:4, 2:5] = True
    assert (rle.decode(sample.instances[0].mask) == expected).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 77}, "annotation 1 has category_id 77, which is not among categories"),
        ({"image_id": 9}, "annotation 1 has image_id 9, which is not among images"),
        ({"segmentation": []}, "no 'bbox' in it"),
    ],
)
def test_an_annotation_that_is_not_complete_is_named_in_words(tmp_path, change, message):
    path = write(tmp_path, [[2, 1, 5, 1, 5, 4]])
    content = json.loads(path.read_text())
    content["annotations"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(RegionSearchError, match=message):
        load(path)


def test_a_folder_is_searched_for_its_one_json_file(tmp_path, world):
    assert len(load(world.samples[0].path.parent).samples) == 6
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [[2, 1, 5, 1, 5, 4]])
    assert len(load(tmp_path / "other").samples) == 1


def test_what_is_missing_or_malformed_is_named(tmp_path):
    with pytest.raises(RegionSearchError, match="is not a data set") as caught:
        load(tmp_path)
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    with pytest.raises(RegionSearchError, match=r"1 images .* missing, such as gone\.png"):
        load(write(tmp_path, [[2, 1, 5, 1, 5, 4]], file_name="gone.png"))
    with pytest.raises(RegionSearchError, match="size"):
        load(write(tmp_path, {"size": [5, 5], "counts": "00"}))
    with pytest.raises(RegionSearchError, match="split"):
        load(write(tmp_path, [[2, 1, 5, 1, 5, 4]], split="train"))
    (tmp_path / "truth.json").write_text("{")
    with pytest.raises(RegionSearchError, match="is not a COCO-style annotation file"):
        load(tmp_path)


def test_crowds_and_empty_masks_are_left_out(tmp_path, world):
    path = world.samples[0].path.parent / "scenes.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] = {"size": [60, 80], "counts": [4800]}
    path.write_text(json.dumps(content))
    assert len(load_coco(path).samples[0].instances) == 0
    assert len(load_coco(path).samples[1].instances) == 2


def test_what_is_a_crowd_in_an_image_is_not_absent_from_it(world):
    path = world.samples[0].path.parent / "scenes.json"
    content = json.loads(path.read_text())
    before = load_coco(path)
    crowd = content["annotations"][0]
    crowd["iscrowd"] = 1
    path.write_text(json.dumps(content))
    after = load_coco(path)
    at = next(i for i, image in enumerate(content["images"]) if image["id"] == crowd["image_id"])
    numbers = sorted(entry["id"] for entry in content["categories"])
    category = numbers.index(crowd["category_id"])
    drawn = _absent(after.samples[at], len(after.categories), np.random.default_rng(0))
    assert category not in drawn
    assert len(drawn) == len(after.categories) - 1 - len(after.samples[at].categories)
    assert after.digest() != before.digest()
    assert all(sample.absent is None for i, sample in enumerate(after.samples) if i != at)


def test_a_pascal_voc_folder_is_loaded(tmp_path):
    for folder in ("SegmentationObject", "SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    objects = np.zeros((10, 12), dtype=np.uint8)
    objects[1:4, 1:4], objects[5:9, 5:9], objects[4, :] = 1, 2, 255
    classes = np.select([objects == 1, objects == 2, objects == 255], [9, 15, 255]).astype(np.uint8)
    for name in ("one", "two"):
        Image.fromarray(objects).save(tmp_path / f"SegmentationObject/{name}.png")
        Image.fromarray(classes).save(tmp_path / f"SegmentationClass/{name}.png")
        Image.new("RGB", (12, 10)).save(tmp_path / f"JPEGImages/{name}.jpg")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("one\ntwo\n")
    dataset = load(tmp_path)
    assert [sample.split for sample in dataset.samples] == ["tune", "test"]
    assert [dataset.categories[i.category] for i in dataset.samples[0].instances] == ["chair", "person"]
    assert [rle.area(i.mask) for i in dataset.samples[0].instances] == [9, 16]
    (tmp_path / "SegmentationClass/two.png").unlink()
    with pytest.raises(RegionSearchError, match="is not a complete PASCAL VOC folder"):
        load_voc(tmp_path)


def test_a_folder_of_voc_boxes_is_loaded(tmp_path):
    """Without masks and without a list of images, as labelling tools leave it."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>5</xmax><ymax>4</ymax></bndbox>"
    thing = "<object><name>{}</name><difficult>{}</difficult>" + box + "</object>"
    for name, things in (("one", [("diningtable", 0)]), ("two", [("coffee_mug", 0), ("diningtable", 1)])):
        Image.new("RGB", (12, 10)).save(tmp_path / f"JPEGImages/{name}.jpg")
        objects = "".join(thing.format(*one) for one in things)
        size = "<size><width>12</width><height>10</height></size>"
        (tmp_path / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    dataset = load(tmp_path)
    assert dataset.categories == ("coffee mug", "dining table")
    one, two = dataset.samples
    assert [i.category for i in one.instances] == [1]
    assert np.flatnonzero(rle.decode(one.instances[0].mask)).tolist() == [25, 26, 27, 28, 37, 38, 39, 40]
    assert ([i.category for i in two.instances], two.absent) == ([0], (0,)), "a difficult one is left out"
    (tmp_path / "Annotations/two.xml").write_text("<annotation><object><name>x</name></object></annotation>")
    with pytest.raises(RegionSearchError, match=r"two\.xml is malformed: annotation has no size/height"):
        load(tmp_path)


def test_the_digest_follows_the_images_and_the_truth(world):
    assert world.digest() == world.digest()
    assert world.digest() != world.subset(5, seed=0).digest()
    before = world.digest()
    path = world.samples[0].path
    Image.new("RGB", (80, 60)).save(path)
    assert world.digest() != before


def test_a_subset_is_drawn_by_its_seed(world):
    assert world.subset(100, seed=0) is world
    assert world.subset(3, seed=1).samples == world.subset(3, seed=1).samples


def test_lvis_is_read_as_published(tmp_path):
    """Images by COCO's address, names with underscores, and a truth that is not complete."""
    path = write(tmp_path, [[2, 1, 5, 1, 5, 4, 2, 4]])
    content = json.loads(path.read_text())
    image = content["images"][0]
    del image["file_name"]
    image |= {"coco_url": "http://images.cocodataset.org/val2017/a.png", "neg_category_ids": [7]}
    content["categories"] = [
        {"id": 3, "name": "police_dog"}, {"id": 5, "name": "cat"}, {"id": 7, "name": "bow_(weapon)"}
    ]  # fmt: skip
    path.write_text(json.dumps(content))
    dataset = load(path)
    assert dataset.categories == ("police dog", "cat", "bow (weapon)")
    assert dataset.samples[0].absent == (2,)  # nobody looked for cats
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "images" / "val2017" / "a.png")
    assert load(path, tmp_path / "images").samples[0].pixels().shape == (6, 8, 3)


def test_an_image_of_another_size_than_its_truth_is_named(tmp_path):
    sample = load(write(tmp_path, [[2, 1, 5, 1, 5, 4]])).samples[0]
    Image.new("RGB", (6, 8)).save(sample.path)
    with pytest.raises(RegionSearchError, match=r"a\.png is 6 x 8 pixels upright, its truth says 8 x 6"):
        sample.pixels()


@pytest.mark.parametrize("segmentation", [[], [[]], 7, {"size": [6, 8], "counts": "0"}, {"counts": [1]}])
def test_masks_that_are_none_are_refused(tmp_path, segmentation):
    with pytest.raises(RegionSearchError) as caught:
        load(write(tmp_path, segmentation))
    assert caught.value.kind is Kind.INVALID_ARGUMENT
