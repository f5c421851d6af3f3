-- grain: one row per (item, annotator), as it was answered last
select item_id, annotator, description, relationship, is_relevant
from annotations
