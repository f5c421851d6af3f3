-- grain: one row per (item, annotator); of an item that nobody has answered one row without an annotator
-- run names one run, all every run whose sequences people were asked about, deleted ones too
create or replace macro annotated_sequences(run := 'all') as table
with asked as (
    select distinct item_id, run_id, method, model, query_id, sequence_id, influence, influence_rank, sparsity, is_spurious
    from annotation_items
    where run = 'all' or run_id = run
)
select
    i.run_id,
    i.model,
    i.method,
    i.query_id,
    i.influence_rank,
    i.sequence_id,
    i.item_id,
    a.annotator,
    a.description,
    a.relationship,
    a.is_relevant,
    i.influence,
    i.sparsity,
    i.is_spurious
from asked i
left join annotations a on a.item_id = i.item_id
order by i.query_id, i.model, i.run_id, i.influence_rank, a.annotator
