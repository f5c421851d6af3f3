-- grain: one number per group: ‖a‖₂ / ‖a‖₁ of the influences of a sequence's tokens; 1 where one token holds everything
-- not a share: of n equal influences it is 1 / √n; null where all are 0
create or replace macro token_sparsity(influence) as sqrt(sum(influence * influence)) / nullif(sum(abs(influence)), 0)
