"""One kind of tables per file.

Each file exports

* `DATASETS`: names of tables;
* `LOCAL`: whether the tables are in the folder of data sets (`data_dir`);
* `load(name, folder) -> tasks.data.base.TableParts`. `folder` is `data_dir`, or
  None if LOCAL is False.

An installed package adds a format as in tasks/data/image_formats/__init__.py,
with the group "tasks.data.table_formats".
"""
