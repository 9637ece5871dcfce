/* Keys on disk and in memory, signatures, key texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/fs.h"
#include "cw/hash.h"
#include "cw/keys.h"
#include "cw/mem.h"

static char dir[] = "/tmp/cw_test_keys_XXXXXX", path[64];

static int make_dir(void **state)
{
    (void)state;
    cw_err err;
    if (cw_crypto_init(&err) != CW_OK || !mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/key", dir);
    return 0;
}

static int drop_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static int drop_file(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static void a_pair_is_made_once_and_private(void **state)
{
    (void)state;
    cw_keys *a = NULL, *b = NULL;
    struct stat st;
    assert_int_equal(cw_keys_open(path, &a, NULL), CW_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(cw_keys_open(path, &b, NULL), CW_OK);
    assert_true(cw_key_equal(cw_keys_public(a), cw_keys_public(b)));
    assert_memory_equal(cw_keys_secret(a), cw_keys_secret(b), 32);
    assert_false(cw_key_is_zero(cw_keys_public(a)));
    cw_keys_free(&a);
    cw_keys_free(&b);
    assert_null(b);
    cw_keys_free(&b);
}

static void a_key_others_can_read_is_refused(void **state)
{
    (void)state;
    cw_keys *k = NULL;
    cw_err err;
    assert_int_equal(cw_keys_open(path, &k, NULL), CW_OK);
    cw_keys_free(&k);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(cw_keys_open(path, &k, &err), CW_STATUS_AUTH);
    assert_non_null(strstr(err.text, path));
    assert_null(k);
}

static void a_damaged_key_file_is_refused_and_kept(void **state)
{
    (void)state;
    cw_signer *s = NULL;
    cw_keys *k = NULL;
    assert_int_equal(cw_signer_open(path, &s, NULL), CW_OK);
    cw_signer_free(&s);
    assert_int_equal(cw_keys_open(path, &k, NULL), CW_STATUS_FORMAT); /* a signing key is no CURVE key */
    char *line = NULL;
    size_t n = 0;
    assert_int_equal(cw_fs_read(path, 200, &line, &n, NULL), CW_OK);
    for (size_t cut = 0; cut + 1 < n; cut++) {
        assert_int_equal(cw_fs_write(path, line, cut, 0600, NULL), CW_OK);
        assert_int_equal(cw_signer_open(path, &s, NULL), CW_STATUS_FORMAT);
    }
    cw_free(line);
}

static void a_signature_fits_one_body_one_context_one_key(void **state)
{
    (void)state;
    cw_signer *a = NULL, *b = NULL;
    uint8_t sig[CW_SIGNATURE_BYTES];
    char body[] = "the tide comes in";
    assert_int_equal(cw_signer_new(&a, NULL), CW_OK);
    assert_int_equal(cw_signer_new(&b, NULL), CW_OK);
    cw_sign(a, "tide 1", body, sizeof body, sig);
    assert_true(cw_sign_verify(cw_signer_public(a), "tide 1", body, sizeof body, sig));
    assert_false(cw_sign_verify(cw_signer_public(b), "tide 1", body, sizeof body, sig));
    assert_false(cw_sign_verify(cw_signer_public(a), "tide 2", body, sizeof body, sig));
    assert_false(cw_sign_verify(cw_signer_public(a), "tide 1", body, sizeof body - 1, sig));
    for (size_t i = 0; i < 8 * sizeof body; i++) {
        body[i / 8] ^= (char)(1 << i % 8);
        assert_false(cw_sign_verify(cw_signer_public(a), "tide 1", body, sizeof body, sig));
        body[i / 8] ^= (char)(1 << i % 8);
    }
    for (size_t i = 0; i < 8 * sizeof sig; i++) {
        sig[i / 8] ^= (uint8_t)(1 << i % 8);
        assert_false(cw_sign_verify(cw_signer_public(a), "tide 1", body, sizeof body, sig));
        sig[i / 8] ^= (uint8_t)(1 << i % 8);
    }
    cw_signer_free(&a);
    cw_signer_free(&b);
}

static void a_key_survives_both_text_forms(void **state)
{
    (void)state;
    /* The example of ZeroMQ's RFC 32: 86 4F D2 6F B5 59 F7 5B is HelloWorld. */
    static const uint8_t example[] = {0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b};
    cw_key k = {{0}}, back;
    memcpy(k.b, example, sizeof example);
    char text[CW_KEY_TEXT], hex[CW_KEY_HEX];
    cw_key_text(&k, text);
    assert_memory_equal(text, "HelloWorld", 10);
    for (int round = 0; round < 200; round++) {
        cw_random(k.b, sizeof k.b);
        cw_key_text(&k, text);
        cw_key_hex(&k, hex);
        assert_true(cw_key_parse(text, &back) && cw_key_equal(&k, &back));
        assert_true(cw_key_parse(hex, &back) && cw_key_equal(&k, &back));
    }
    assert_false(cw_key_parse("", &back));
    text[7] = ' ';
    assert_false(cw_key_parse(text, &back));
    memset(text, '#', 40); /* more than 32 bits a group */
    assert_false(cw_key_parse(text, &back));
    hex[9] = 'g';
    assert_false(cw_key_parse(hex, &back));
}

static void a_hash_in_pieces_is_the_hash_of_the_whole(void **state)
{
    (void)state;
    uint8_t data[1000], whole[32], parts[32], other[32];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
    cw_hash("a", data, sizeof data, whole);
    for (size_t cut = 0; cut <= sizeof data; cut += 37) {
        cw_hash_state h;
        cw_hash_begin(&h, "a");
        cw_hash_add(&h, data, cut);
        cw_hash_add(&h, data + cut, sizeof data - cut);
        cw_hash_end(&h, parts);
        assert_true(cw_equal_secret(whole, parts, 32));
    }
    cw_hash("b", data, sizeof data, other);
    assert_false(cw_equal_secret(whole, other, 32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_pair_is_made_once_and_private, drop_file),
        cmocka_unit_test_teardown(a_key_others_can_read_is_refused, drop_file),
        cmocka_unit_test_teardown(a_damaged_key_file_is_refused_and_kept, drop_file),
        cmocka_unit_test(a_signature_fits_one_body_one_context_one_key),
        cmocka_unit_test(a_key_survives_both_text_forms),
        cmocka_unit_test(a_hash_in_pieces_is_the_hash_of_the_whole),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
