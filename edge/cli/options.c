/* The option tables of the causeway command. Each row is the only place that knows its option. */
#include "cli.h"

#include <stdio.h>

#define AT(field) offsetof(cli_options, field)

static const cw_option model_rows[] = {
    {"model", 'm', CW_OPT_STRING, AT(model), "FILE", NULL, 0, 0, NULL, NULL, "Model", 0,
     "GGUF file, any shard of it; without it the demo model that comes with the program"},
    {"isa", 0, CW_OPT_ENUM, AT(isa), NULL, "best|scalar|avx2|avx512|neon|amx", 0, 0, "best", NULL, NULL, 0,
     "instruction set of the kernels; every one gives the same bits"},
    {"expert-groups", 0, CW_OPT_STRING, AT(groups), "N/M", NULL, 0, 0, NULL, NULL, NULL, 0,
     "experts lie in N groups of which M are used, where the file does not say"},
    {0},
};

static const cw_option threads_rows[] = {
    {"threads", 0, CW_OPT_INT, AT(threads), "N", NULL, 0, 256, "0", NULL, NULL, 0,
     "compute threads; 0: one per core"},
    {"cpus", 0, CW_OPT_STRING, AT(cpus), "LIST", NULL, 0, 0, NULL, NULL, NULL, 0,
     "stay on these CPUs, such as 0-3,8, a compute thread on each; without it anywhere"},
    {0},
};

static const cw_option session_rows[] = {
    {"ctx", 0, CW_OPT_INT, AT(ctx), "N", NULL, 0, 1 << 24, "0", NULL, NULL, 0,
     "context in tokens; 0: what the file says, at most 8192"},
    {"kv", 0, CW_OPT_ENUM, AT(kv), NULL, "auto|f32|f16|q8", 0, 0, "auto", NULL, NULL, 0,
     "type of the KV cache; auto: f32 for f32 weights, else f16; q8: 8 bit, a little more than half of f16"},
    {"prefill", 0, CW_OPT_ENUM, AT(prefill_form), NULL, "absorbed|expanded", 0, 0, "absorbed", NULL, NULL, 0,
     "how a long prompt attends; expanded is faster for thousands of tokens, needs OpenBLAS, and its bits "
     "are "
     "not promised"},
    {0},
};

static const cw_option mainland_rows[] = {
    {"join", 0, CW_OPT_STRING, AT(join), "STRING|@file|-", NULL, 0, 0, NULL, NULL, "Mainland", 0,
     "join string of a cluster, a file that holds it, or - for standard input"},
    {"state", 0, CW_OPT_STRING, AT(state), "DIR", NULL, 0, 0, NULL, "CAUSEWAY_EDGE_STATE", NULL, 0,
     "private directory for this edge's key and ticket"},
    {"name", 0, CW_OPT_STRING, AT(name), "NAME", NULL, 0, 0, NULL, NULL, NULL, 0,
     "what this edge is called in the cluster; without it the host's name"},
    {"wait", 0, CW_OPT_DURATION, AT(wait), "TIME", NULL, 0, 86400, "0", NULL, NULL, 0,
     "how long to wait for the cluster, and in an answer for experts that were lost; 0: 30 s in mode split, "
     "5 s in mode "
     "auto, 10 s in an answer"},
    {"no-ipc", 0, CW_OPT_FLAG, AT(no_ipc), NULL, NULL, 0, 0, NULL, "CAUSEWAY_NO_IPC", NULL, 0,
     "reach workers of the same user on this machine over TCP, encrypted, like all others"},
    {0},
};

static const cw_option mode_rows[] = {
    {"mode", 0, CW_OPT_ENUM, AT(mode), NULL, "auto|split|offline|local|draft", 0, 0, "auto", NULL, NULL, 0,
     "split: experts on the cluster; draft: the same, and the fallback guesses runs of tokens that are "
     "verified "
     "in one pass; local: everything here; offline: the fallback model; auto: the first that works"},
    {"fallback", 0, CW_OPT_STRING, AT(fallback), "FILE", NULL, 0, 0, NULL, NULL, NULL, 0,
     "small model that answers when the cluster is out of reach; for the demo model its student"},
    {"draft", 0, CW_OPT_INT, AT(draft), "N", NULL, 0, 32, "0", NULL, NULL, 0,
     "tokens guessed before each pass in mode draft; 0: as many as pay. The text is the same for every N"},
    {"drafter", 0, CW_OPT_ENUM, AT(drafter), NULL, "auto|fallback|mtp", 0, 0, "auto", NULL, NULL, 0,
     "who guesses: the fallback; mtp: the model's own multi-token-prediction head, at most 2 tokens; auto: "
     "the fallback, or the head of --mtp or of the demo model where that turns out to give more"},
    {"warm", 0, CW_OPT_ENUM, AT(warm), NULL, "auto|never", 0, 0, "auto", NULL, NULL, 0,
     "never: the fallback does not follow the conversation while the network is awaited; it saves its "
     "computing and costs the time of reading everything when it must go on"},
    {"verify-offline", 0, CW_OPT_FLAG, AT(verify_offline), NULL, NULL, 0, 0, NULL, NULL, NULL, 0,
     "when the cluster is back, say from where on the big model would have written otherwise than the "
     "fallback "
     "did"},
    {"redo-offline", 0, CW_OPT_ENUM, AT(redo_offline), NULL, "ask|always|never", 0, 0, "ask", NULL, NULL, 0,
     "with --verify-offline: write on from there instead; ask: in a chat on a terminal, elsewhere never"},
    {0},
};

static const cw_option head_rows[] = {
    {"mtp", 0, CW_OPT_STRING, AT(mtp), "FILE", NULL, 0, 0, NULL, NULL, NULL, 0,
     "companion file with the model's multi-token-prediction head; without it --drafter mtp takes the head "
     "in the model's own file, and the demo model's its companion"},
    {0},
};

static const cw_option answer_rows[] = {
    {"system", 0, CW_OPT_STRING, AT(system), "TEXT", NULL, 0, 0, NULL, NULL, "Answer", 0,
     "system message before the conversation"},
    {"session", 0, CW_OPT_STRING, AT(session), "FILE", NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "keep the conversation in FILE and its KV cache in FILE.kv, and go on where it ended; both are "
     "encrypted "
     "with a key in the state directory"},
    {"raw", 0, CW_OPT_FLAG, AT(raw), NULL, NULL, 0, 0, NULL, NULL, NULL, 0,
     "no chat template: the model continues the text as it is, special tokens included"},
    {"max-tokens", 'n', CW_OPT_INT, AT(max_tokens), "N", NULL, 0, 1 << 24, "512", NULL, NULL, 0,
     "longest answer in tokens; 0: until the context is full"},
    {"temp", 0, CW_OPT_FLOAT, AT(temp), "T", NULL, 0, 100, "0", NULL, NULL, 0,
     "temperature; 0: always the best token"},
    {"seed", 0, CW_OPT_INT, AT(seed), "S", NULL, 0, 0, "1", NULL, NULL, 0,
     "noise of the sampler: the same seed gives the same text in every mode"},
    {"top-k", 0, CW_OPT_INT, AT(top_k), "N", NULL, 0, 1 << 30, "0", NULL, NULL, 0,
     "sample among the N best tokens; 0: off"},
    {"top-p", 0, CW_OPT_FLOAT, AT(top_p), "P", NULL, 1e-6, 1, "1", NULL, NULL, 0,
     "sample among the best tokens that together have probability P; 1: off"},
    {"min-p", 0, CW_OPT_FLOAT, AT(min_p), "P", NULL, 0, 1, "0", NULL, NULL, 0,
     "drop tokens less likely than P times the best; 0: off"},
    {"repeat-penalty", 0, CW_OPT_FLOAT, AT(repeat_penalty), "X", NULL, 0.01, 100, "1", NULL, NULL, 0,
     "make tokens that occurred less likely; 1: off"},
    {"repeat-last", 0, CW_OPT_INT, AT(repeat_last), "N", NULL, -1, 1 << 24, "64", NULL, NULL, 0,
     "how many tokens back the penalty looks; -1: all"},
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "one JSON object a line: pieces of text, then a summary"},
    {"digest", 0, CW_OPT_FLAG, AT(digest), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "with --json: the summary has the tokens that the session holds and a digest of them, their KV rows and "
     "the logits behind them"
     "; equal digests are equal states"},
    {"quiet", 'q', CW_OPT_FLAG, AT(quiet), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "no progress, no mode line, no summary on stderr"},
    {0},
};

static const cw_option prompt_rows[] = {
    {"prompt", 'p', CW_OPT_STRING, AT(prompt), "PROMPT", NULL, 0, 0, NULL, NULL, "Prompt",
     CW_OPT_REQUIRED | CW_OPT_NO_ENV, "what to answer; - reads standard input"},
    {0},
};

static const cw_option logits_rows[] = {
    {"tokens", 0, CW_OPT_STRING, AT(tokens), "LIST|@file", NULL, 0, 0, NULL, NULL, "Logits",
     CW_OPT_REQUIRED | CW_OPT_NO_ENV, "token ids, separated by commas or white space"},
    {"after", 0, CW_OPT_STRING, AT(after), "LIST|@file", NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "one row of logits after each of these numbers of tokens"},
    {"out", 0, CW_OPT_STRING, AT(out), "FILE", NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "raw little-endian f32, one row of the vocabulary's size for each entry of --after"},
    {"chunk", 0, CW_OPT_INT, AT(chunk), "N", NULL, 0, 1 << 16, "0", NULL, NULL, 0,
     "tokens in one pass, 0: 256; the logits do not depend on it"},
    {"digest", 0, CW_OPT_FLAG, AT(digest), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "print the digest of the state after all tokens, as run --json --digest has it; needs no --after and "
     "--out"},
    {0},
};

static const cw_option perplexity_rows[] = {
    {"file", 'f', CW_OPT_STRING, AT(file), "FILE|-", NULL, 0, 0, NULL, NULL, "Perplexity",
     CW_OPT_REQUIRED | CW_OPT_NO_ENV,
     "the text; of a .jsonl file every line is a text: its \"text\", or \"prompt\" and \"reference\" "
     "together"},
    {"chunk", 0, CW_OPT_INT, AT(chunk), "N", NULL, 0, 1 << 12, "0", NULL, NULL, 0,
     "tokens in one pass, 0: 256"},
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV, "one JSON object"},
    {"quiet", 'q', CW_OPT_FLAG, AT(quiet), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "no progress on stderr"},
    {0},
};

static const cw_option tokenize_rows[] = {
    {"special", 0, CW_OPT_FLAG, AT(special), NULL, NULL, 0, 0, NULL, NULL, "Tokenize", CW_OPT_NO_ENV,
     "recognise special tokens in the text and add those the model begins with; with --decode, print them"},
    {"decode", 0, CW_OPT_FLAG, AT(decode), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "from ids to text"},
    {0},
};

static const cw_option inspect_rows[] = {
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, "Inspect", CW_OPT_NO_ENV,
     "one JSON object"},
    {0},
};

static const cw_option fallback_rows[] = {
    {"fallback", 0, CW_OPT_STRING, AT(fallback), "FILE", NULL, 0, 0, NULL, NULL, NULL, 0,
     "small model for offline answers and drafts; for the demo model its student"},
    {0},
};

static const cw_option plan_rows[] = {
    {"rtt", 0, CW_OPT_DURATION, AT(rtt), "TIME", NULL, 0, 60, "0", NULL, "Plan", CW_OPT_NO_ENV,
     "round trip to the workers, as ping shows it: 20ms"},
    {"bandwidth", 0, CW_OPT_STRING, AT(bandwidth), "BITS", NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "of this machine's link, in bits a second: 100M, 1G; without it no limit"},
    {"stall-share", 0, CW_OPT_FLOAT, AT(stall_share), "PART", NULL, 0, 1, "0", NULL, NULL, CW_OPT_NO_ENV,
     "part of all messages that is held up: 0.01"},
    {"stall", 0, CW_OPT_DURATION, AT(stall), "TIME", NULL, 0, 60, "200ms", NULL, NULL, CW_OPT_NO_ENV,
     "for how long those are held up"},
    {"memory", 0, CW_OPT_STRING, AT(memories), "LIST", NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "what each worker lends: 64G,64G,32G"},
    {"replicas", 0, CW_OPT_FLAG, AT(replicas), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "every expert is on two workers: a call that is held up is answered by the other"},
    {"answer", 0, CW_OPT_INT, AT(answer), "N", NULL, 0, 1 << 24, "0", NULL, NULL, CW_OPT_NO_ENV,
     "tokens of a usual answer: its end cuts the last guesses short; 0: long ones"},
    {"workers", 0, CW_OPT_INT, AT(n_workers), "N", NULL, 0, 4096, "0", NULL, NULL, CW_OPT_NO_ENV,
     "workers that share a layer; 0: as many as --memory names, else 2"},
    {"worker-speed", 0, CW_OPT_SIZE, AT(worker_speed), "SIZE", NULL, 1 << 20, 1e13, "10G", NULL, NULL,
     CW_OPT_NO_ENV, "bytes of weights that one worker reads in a second (causeway bench --memory)"},
    {"call", 0, CW_OPT_DURATION, AT(call), "TIME", NULL, 0, 1, "120us", NULL, NULL, CW_OPT_NO_ENV,
     "what a layer's call costs both ends beside reading and computing; --join measures it"},
    {"accept", 0, CW_OPT_FLOAT, AT(accept), "PART", NULL, 0, 1, "0.8", NULL, NULL, CW_OPT_NO_ENV,
     "part of the fallback's guesses that are right; an answer's summary shows it"},
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV, "one JSON object"},
    {"quiet", 'q', CW_OPT_FLAG, AT(quiet), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "no progress on stderr"},
    {0},
};

static const cw_option bench_rows[] = {
    {"prompts", 'p', CW_OPT_STRING, AT(prompts), "LIST", NULL, 0, 0, "128,512", NULL, "Bench", CW_OPT_NO_ENV,
     "prompts of these many tokens; 0: none"},
    {"generate", 'n', CW_OPT_INT, AT(generate), "N", NULL, 0, 1 << 20, "32", NULL, NULL, CW_OPT_NO_ENV,
     "decode steps; 0: none"},
    {"depth", 'd', CW_OPT_INT, AT(depth), "N", NULL, 0, 1 << 24, "0", NULL, NULL, CW_OPT_NO_ENV,
     "tokens that a session holds before"},
    {"threads", 't', CW_OPT_STRING, AT(thread_list), "LIST", NULL, 0, 0, "0", NULL, NULL, 0,
     "compute threads, one after the other; 0: one per core"},
    {"cpus", 0, CW_OPT_STRING, AT(cpus), "LIST", NULL, 0, 0, NULL, NULL, NULL, 0,
     "stay on these CPUs, such as 0-3,8, a compute thread on each; without it anywhere"},
    {"batch", 'b', CW_OPT_STRING, AT(batch), "LIST", NULL, 0, 0, "1", NULL, NULL, CW_OPT_NO_ENV,
     "sessions that decode together"},
    {"rounds", 'r', CW_OPT_INT, AT(rounds), "N", NULL, 1, 1000, "5", NULL, NULL, CW_OPT_NO_ENV,
     "how often everything is measured, in turn"},
    {"chunk", 0, CW_OPT_INT, AT(chunk), "N", NULL, 0, 1 << 12, "0", NULL, NULL, 0,
     "tokens in one pass, 0: 256"},
    {"memory", 0, CW_OPT_FLAG, AT(memory), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "only how fast this machine reads memory"},
    {"memory-size", 0, CW_OPT_SIZE, AT(memory_size), "SIZE", NULL, 16 << 20, 1099511627776.0, "1G", NULL,
     NULL, CW_OPT_NO_ENV,
     "how much is read to measure that, and twice a kernel's matrix; less than 1G measures caches"},
    {"kernels", 0, CW_OPT_FLAG, AT(kernels), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "only the kernels, of every instruction set or the one of --isa"},
    {"wire", 0, CW_OPT_FLAG, AT(wire), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "only what a layer's call to the cluster of --join costs"},
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "one JSON object for each measurement"},
    {"quiet", 'q', CW_OPT_FLAG, AT(quiet), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "no progress on stderr"},
    {0},
};

static const cw_command commands[] = {
    {"run",
     "-p PROMPT [-m MODEL] [--join STRING] [options]",
     "answer one prompt",
     "Answers on standard output; which mode and how fast is said on stderr.\n"
     "Without --join everything runs here. With it the experts run on the cluster, and the fallback model "
     "goes on\n"
     "when the cluster is out of reach.",
     "  causeway run -p 'What is 347 + 285?'\n"
     "  causeway run -m DeepSeek-V2-Lite.Q4_K_M.gguf --join @join.txt -p 'Why is the sky blue?'\n"
     "  causeway run --mode offline --json -p 'Tell me a story about a brave fox.' --temp 0.8",
     {prompt_rows, model_rows, threads_rows, session_rows, mainland_rows, mode_rows, head_rows, answer_rows},
     0,
     0,
     NULL},
    {"chat",
     "[-m MODEL] [--join STRING] [options]",
     "talk with a model",
     "At the prompt: /help, /mode, /stats, /redo, /history, /new, /quit. Ctrl-C stops the answer, Ctrl-D "
     "leaves.\n"
     "With --session FILE the conversation is there again the next time.",
     "  causeway chat --join @join.txt --system 'You are brief.'\n"
     "  causeway chat --session trip.chat",
     {model_rows, threads_rows, session_rows, mainland_rows, mode_rows, head_rows, answer_rows},
     0,
     0,
     NULL},
    {"logits",
     "--tokens LIST (--after LIST --out FILE | --digest) [-m MODEL] [--join STRING] [options]",
     "write raw logits",
     "For tests and comparisons. With --join the experts run on the cluster; the bits are the same.",
     "  causeway logits -m model.gguf --tokens 1,5,9 --after 1,3 --out rows.f32",
     {logits_rows, model_rows, threads_rows, session_rows, mainland_rows},
     0,
     0,
     NULL},
    {"perplexity",
     "-f FILE [-m MODEL] [--kv TYPE] [--prefill FORM] [--ctx N] [options]",
     "how well a model foresees a text",
     "Prints e to the mean loss of a token, and how often the likeliest token was the right one. The text is "
     "cut\n"
     "into windows of --ctx tokens (512 unless told), each standing alone; special tokens in it count as "
     "such.\n"
     "Run it twice to see what a type of the KV cache costs.",
     "  causeway perplexity -m model.gguf -f text.txt --ctx 2048\n"
     "  causeway perplexity -f deploy/demo/eval/prompts.jsonl --kv q8",
     {perplexity_rows, model_rows, threads_rows, session_rows, mainland_rows},
     0,
     0,
     NULL},
    {"tokenize",
     "[-m MODEL] [--special] [--decode] TEXT|-|@file",
     "text to token ids, and back",
     "Prints ids separated by spaces; with --decode reads ids and prints text.",
     "  causeway tokenize 'Hello world'\n  causeway tokenize --decode '412 77'",
     {model_rows, tokenize_rows},
     1,
     1,
     "TEXT"},
    {"inspect",
     "[--json] [FILE]",
     "what a model file holds, and who would hold what",
     "Architecture, sizes and tensor types, and the memory that an edge and the workers would need.\n"
     "With --fallback also whether that model can draft for this one, or only stand in for it; a "
     "prediction head,\n"
     "in the file or named with --mtp, is held against the model.",
     "  causeway inspect DeepSeek-V2-Lite.Q4_K_M.gguf",
     {model_rows, inspect_rows, fallback_rows, head_rows},
     0,
     1,
     NULL},
    {"plan",
     "[-m MODEL] [--fallback FILE] [--join STRING] [--rtt TIME --bandwidth BITS] [--memory LIST] [options]",
     "what each mode would give on a link, before anything is set up",
     "Loads what an edge holds and times it here, counts round trips, bytes and the experts that are read, "
     "and "
     "prints\n"
     "tokens a second and bytes a token of every mode, with the reason. With --join the link and the workers "
     "are "
     "measured\n"
     "by a few passes through them; --rtt and --bandwidth beside it move those workers to another link. With "
     "--memory it says whether the model fits and how many homes each "
     "expert "
     "has.\n"
     "A draft gains where round trips dominate and guesses are right (--accept); it loses where rows are "
     "what "
     "costs.",
     "  causeway plan -m DeepSeek-V2-Lite.Q4_K_M.gguf --rtt 20ms --bandwidth 100M --memory 12G,12G\n"
     "  causeway plan --rtt 20ms --accept 0.96\n"
     "  causeway plan -m model.gguf --fallback small.gguf --join @edge.join",
     {plan_rows, model_rows, threads_rows, session_rows, fallback_rows, mainland_rows},
     0,
     0,
     NULL},
    {"bench",
     "[-m MODEL] [-p LIST] [-n N] [-t LIST] [--batch LIST] [--join STRING] | --memory | --kernels | --wire",
     "measure speed",
     "Prefill and decode in tokens a second, where the time goes, and how much of the memory's speed the "
     "weights are read with,\n"
     "measured beside each round. Medians of rounds in turn; +- is half of what the middle half of the "
     "rounds "
     "spans.\n"
     "With --join the experts run on the cluster.",
     "  causeway bench -m model.gguf -p 128,512 -n 32 -t 1,2 --batch 1,8,32\n"
     "  causeway bench --memory -t 1,2\n"
     "  causeway bench --kernels --json\n"
     "  causeway bench --wire -m model.gguf --join @join.txt",
     {bench_rows, model_rows, session_rows, mainland_rows},
     0,
     0,
     NULL},
};

const cw_program cli_program = {
    "causeway",
    "run a Mixture-of-Experts model between this machine and a cluster of workers",
    "The edge holds tokenizer, attention, router and conversation; workers hold the experts; a small "
    "fallback model\n"
    "keeps answering when they are out of reach.",
    commands,
    CW_ARRAY_LEN(commands),
};

const char *cli_mode_name(cli_mode m)
{
    static const char *const names[] = {"auto", "split", "offline", "local", "draft"};
    return names[m];
}

int cli_fail(const cw_err *err)
{
    return cw_program_fail(&cli_program, err);
}

int cli_usage(const char *sentence)
{
    cw_err err;
    snprintf(err.text, sizeof err.text, "%s", sentence);
    return cw_program_usage(&cli_program, &err);
}
