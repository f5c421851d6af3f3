-- grain: one JSON object per metadata of a query: what its true documents say of themselves; null where it names none
-- `group` names the query's kind, for studies, and nothing of a document
create or replace macro truth_of(metadata) as
    nullif(json_merge_patch(coalesce(metadata, '{}'::json), '{"group": null}'), '{}'::json)
