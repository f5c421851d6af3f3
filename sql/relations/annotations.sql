-- grain: one row per (item, annotator): what somebody answered last
-- not the stored table, which keeps what an answer was before it was replaced
create or replace view annotations as
select item_id, annotator, description, relationship, is_relevant, imported_at
from stored.annotations
qualify row_number() over (partition by item_id, annotator order by imported_at desc, description, relationship) = 1
